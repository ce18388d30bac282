"""Faults of all kinds at random under load, for as long as one likes.

``python -m tests.crash.outages.soak MINUTES [SEED]``. The seed decides what is asked for and which
fault comes when; which of the processes is where at that moment it cannot decide, so a second run
with the same seed is alike, not the same. Exit code 1 when a promise is broken.
"""

from __future__ import annotations

import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from tests.crash.matrix.external import KINDS, Finding
from tests.crash.outages.site import LEASE, Site
from tests.crash.outages.traffic import Traffic
from tests.support.services import PostgresServer, RedisServer

PRODUCERS: Final = 12
PAUSE: Final = 1.0
"""Seconds between two faults, on average."""
PROGRESS_SECONDS: Final = 30.0


class Soak:
    """A site under load, and its faults."""

    def __init__(self, site: Site, postgres: PostgresServer, seed: int) -> None:
        self.site = site
        self.postgres = postgres
        self.faults: Counter[str] = Counter()
        self._random = random.Random(seed)
        # How often each is chosen; the services' ends hit everything at once, so they are rarer.
        self._choices: dict[Callable[[], None], int] = {
            self.kill_child: 30,
            self.kill_worker: 15,
            self.kill_scheduler: 6,
            self.kill_reconciler: 4,
            self.stop_child: 6,
            self.end_worker: 6,
            self.kill_redis: 2,
            self.redis_away: 1,
            self.restart_postgres: 2,
        }

    def fault(self) -> None:
        """One, at random."""
        (chosen,) = self._random.choices(list(self._choices), list(self._choices.values()))
        with suppress(psutil.NoSuchProcess):  # it died of the last fault only now
            chosen()
            self.faults[chosen.__name__] += 1

    def _one(self, role: str) -> psutil.Process:
        found = self.site.processes(role)
        if not found:
            raise psutil.NoSuchProcess(0)
        return self._random.choice(sorted(found, key=lambda one: one.pid))

    def _child(self) -> psutil.Process:
        main = self._one(self._random.choice(("worker", "worker", "worker", "scheduler")))
        return self._random.choice(main.children() or [main])

    def kill_child(self) -> None:
        """A pool child, in the middle of whatever it does."""
        self._child().kill()

    def kill_worker(self) -> None:
        """A worker's main process; its child ends with it."""
        self._one("worker").kill()

    def kill_scheduler(self) -> None:
        """One of those that take requests in."""
        self._one("scheduler").kill()

    def kill_reconciler(self) -> None:
        """There is one, and it is back soon."""
        self._one("reconciler").kill()

    def stop_child(self) -> None:
        """Longer than a lease; then it goes on as if nothing had been."""
        child = self._child()
        child.suspend()
        time.sleep(LEASE * 1.5)
        child.resume()

    def end_worker(self) -> None:
        """As an upgrade does."""
        self._one("worker").send_signal(signal.SIGTERM)

    def kill_redis(self) -> None:
        """Everything in it is gone: messages and results."""
        self.site.redis.restart(kill=True)

    def redis_away(self) -> None:
        """Nobody reaches it for a while."""
        self.site.redis.stop()
        time.sleep(3.0)
        self.site.redis.start()

    def restart_postgres(self) -> None:
        """At once, with recovery."""
        self.postgres.restart(immediate=True)

    def run(self, traffic: Traffic, seconds: float) -> None:
        """Fault after fault, and a line of progress now and then."""
        end = time.monotonic() + seconds
        shown = time.monotonic()
        while (now := time.monotonic()) < end:
            with self.site.trouble():
                self.fault()
            if now - shown > PROGRESS_SECONDS:
                shown = now
                say(f"  {end - now:.0f} s to go: {traffic.counts['sent']} requests, "
                    f"{self.faults.total()} faults")  # fmt: skip
            time.sleep(self._random.uniform(0.0, 2.0 * PAUSE))


def say(text: str) -> None:
    print(text, flush=True)


def judge(site: Site, traffic: Traffic) -> list[Finding]:
    """Wait until all is at rest, compare; then delete everything, and look what is left."""
    found: list[Finding] = []
    try:
        traffic.stop()
    except AssertionError as lost:
        found.append(Finding("lost", "", str(lost)))
    with suppress(AssertionError):  # what is in flight for ever is among the findings
        site.settle()
    found += site.findings(traffic.projects)
    if not found:
        traffic.each("clear")
        site.settle()
        found += site.external.left()
    return found


def main(minutes: str, seed: str = "") -> int:
    """Soak for so many minutes; returns the exit code."""
    chosen = int(seed or time.time())
    say(f"soak: {minutes} minutes, seed {chosen}")
    directory = Path(tempfile.mkdtemp(prefix="sw-soak-"))
    postgres, redis = PostgresServer(), RedisServer()
    site = None
    try:
        postgres.start()
        redis.start()
        url = postgres.url(postgres.create_database())
        site = Site(directory, url, redis).start()
        traffic = Traffic(site, PRODUCERS, chosen)
        soak = Soak(site, postgres, chosen)
        try:
            traffic.start()
            soak.run(traffic, float(minutes) * 60.0)
            site.calm()
            found = judge(site, traffic)
        finally:
            traffic.close()
    finally:
        if site is not None:
            site.close()
        redis.close()
        postgres.close()
    for finding in found:
        say(f"{finding.kind}: {finding.project}: {finding.sentence}")
    zeros = Counter(finding.kind for finding in found)
    say(f"requests: {dict(sorted(traffic.counts.items()))}")
    say(f"faults: {dict(sorted(soak.faults.items()))}")
    say(f"soak: {traffic.counts['sent']} requests, {soak.faults.total()} faults, "
        + ", ".join(f"{zeros[kind]} {kind}" for kind in KINDS)
        + f" (seed {chosen}; logs in {directory})")  # fmt: skip
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
