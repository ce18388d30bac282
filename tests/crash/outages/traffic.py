"""Producers that do as the producer's guide says: send until heard, wait, and send again."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError
from sqlalchemy.exc import DBAPIError

from scheduler.client import NotHeard
from tests.crash.matrix.cells import FLAT, MODES, SINGLE
from tests.crash.outages.site import Site
from tests.support.pace import limit
from tests.support.services import wait_until
from worker.errors import RequestFailed

UNHEARD: Final = (NotHeard, OperationalError, RedisError, OSError)
"""What a producer meets when the broker is away."""
"""Seconds after the last fault by which a request must have ended: lease, grace, and a queue."""
MOST_SHARES: Final = 3
_WISHES: Final = ("allow", "allow", "deny", "extend", "snapshot", "forget", "delete", "create")


class Lost(AssertionError):
    """A request that did not end."""


class Producer:
    """One project's: it asks for one thing at a time, and knows what became of it."""

    def __init__(self, site: Site, number: int, seed: int) -> None:
        self.site = site
        self.project = f"project-{number}"
        self.mode = MODES[number % len(MODES)]
        self.counts: Counter[str] = Counter()
        self._random = random.Random(f"{seed}/{number}")
        self._client = site.client()
        self._network: dict[str, Any] = {}

    def run(self, stop: threading.Event) -> None:
        """Ask for one thing after another until told to stop."""
        while not self._network and not stop.is_set():
            self._make_network()
        while not stop.is_set():
            self._next()

    def _make_network(self) -> None:
        if self.mode == SINGLE:
            self._network = {"share_type": SINGLE}
            return
        options = (
            {"flat_network_ip_pool": ["10.0.0.0/28"]} if self.mode == FLAT else {"managed": True}
        )
        made = self.ask("create_share_network", **options)
        if made is not None:
            self._network = {"share_type": self.mode, "share_network_id": made["id"]}

    def _next(self) -> None:
        shares = self._rows(
            "SELECT id, size FROM shares WHERE project_id = :own AND status = 'available'"
        )
        if not shares or (len(shares) < MOST_SHARES and self._random.random() < 0.3):
            self.ask("create_share", size=1, **self._network)
            return
        share = self._random.choice(shares)
        where = {"share_id": share["id"]}
        snapshots = self._rows(
            "SELECT id FROM snapshots WHERE project_id = :own AND status = 'available'"
        )
        rules = self._rows(
            "SELECT id, share_id FROM access_rules WHERE project_id = :own AND state = 'active'"
        )
        match self._random.choice(_WISHES):
            case "allow":
                self.ask(
                    "allow_access", access_to=f"10.1.0.{self._random.randrange(1, 250)}", **where
                )
            case "deny" if rules:
                self.ask("deny_access", share_id=rules[0]["share_id"], access_id=rules[0]["id"])
            case "extend" if share["size"] < 5:
                self.ask("extend_share", new_size=share["size"] + 1, **where)
            case "snapshot" if len(snapshots) < MOST_SHARES:
                self.ask("create_snapshot", **where)
            case "forget" if snapshots:
                self.ask("delete_snapshot", snapshot_id=snapshots[0]["id"])
            case "delete":
                self.ask("delete_share", **where)
            case _:
                self.ask("create_share", size=1, **self._network)

    def _rows(self, statement: str) -> list[dict[str, Any]]:
        """What the project has; nothing to choose from while the database is away."""
        try:
            return self.site.external.rows(statement, own=self.project)
        except DBAPIError:
            time.sleep(0.2)
            return []

    def ask(self, verb: str, **fields: Any) -> dict[str, Any] | None:
        """Send until it is heard and has ended; None if it was refused, or failed."""
        payload = {"version": 1, "context": {"project_id": self.project}, **fields}
        operation_id = str(uuid.uuid4())
        began = time.monotonic()
        self.counts["sent"] += 1
        while True:
            try:
                self._client.submit(verb, payload, operation_id=operation_id, timeout=3.0)
                made = self._client.result(operation_id, timeout=3.0)
            except RequestFailed as failed:
                self.counts[f"ended: {failed.code}"] += 1
                return None
            except UNHEARD:
                waited = time.monotonic() - max(began, self.site.calm_at)
                if waited > limit():
                    raise Lost(
                        f"{verb} of {self.project}, {operation_id}: {waited:.0f} s"
                    ) from None
                self.counts["sent again"] += 1
                time.sleep(0.1)
            else:
                self.counts["succeeded"] += 1
                return made

    def clear(self) -> None:
        """Delete all that the project has, however often that must be asked for."""
        for table, verb, field in (
            ("snapshots", "delete_snapshot", "snapshot_id"),
            ("shares", "delete_share", "share_id"),
            ("share_networks", "delete_share_network", "share_network_id"),
        ):
            deadline = time.monotonic() + limit()
            while found := self._rows(f"SELECT id FROM {table} WHERE project_id = :own"):
                for row in found:
                    self.ask(verb, **{field: row["id"]})
                if time.monotonic() > deadline:
                    raise Lost(f"{table} of {self.project} cannot be deleted: {found}")

    def close(self) -> None:
        """Give back the connections."""
        self._client.close()


class Traffic:
    """Some producers at once."""

    def __init__(self, site: Site, producers: int, seed: int) -> None:
        self.site = site
        self.producers = [Producer(site, number, seed) for number in range(producers)]
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(producers)
        self._running: list[Future[None]] = []

    def start(self) -> None:
        """Begin to send."""
        self._running = [self._pool.submit(one.run, self._stop) for one in self.producers]

    def stop(self) -> None:
        """Stop, once what is on its way has ended; raises what a producer met."""
        self._stop.set()
        for one in self._running:
            one.result()

    def each(self, what: str) -> None:
        """Have all producers do something at once."""
        for one in [self._pool.submit(getattr(producer, what)) for producer in self.producers]:
            one.result()

    @property
    def projects(self) -> list[str]:
        """Whose things there may be."""
        return [one.project for one in self.producers]

    @property
    def counts(self) -> Counter[str]:
        """What was sent, and how it ended."""
        return sum((one.counts for one in self.producers), Counter())

    def close(self) -> None:
        """Leave nothing running."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)
        for one in self.producers:
            one.close()


def ended(traffic: Traffic, number: int) -> None:
    """Wait for so many more requests to end well."""
    wanted = traffic.counts["succeeded"] + number
    wait_until(lambda: traffic.counts["succeeded"] >= wanted, f"{number} more requests")


@contextmanager
def judged(site: Site, *, producers: int = 9, seed: int = 1) -> Iterator[Traffic]:
    """Traffic during whatever the body does to the site; then the four zeros are looked for."""
    traffic = Traffic(site, producers, seed)
    try:
        traffic.start()
        yield traffic
        site.calm()
        traffic.stop()
        site.settle()
        found = list(site.findings(traffic.projects))
        assert found == []
        traffic.each("clear")
        site.settle()
        found = list(site.external.left())
        assert found == []
    except BaseException:
        print(site.logs(), *site.in_flight(), sep="\n")
        raise
    finally:
        traffic.close()
    print(dict(traffic.counts))
