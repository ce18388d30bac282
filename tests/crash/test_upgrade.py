"""The first release is upgraded under load, runs beside this one, and is rolled back to."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import ClassVar, Final

from tests.crash.outages.site import LEASE, Site
from tests.crash.outages.traffic import ended, judged
from tests.support.releases import FIRST, Release
from tests.support.services import Process, RedisServer, python, wait_until

ROLES: Final = {
    "scheduler": ("scheduler",),
    "worker-1": ("worker", "--concurrency", "2"),
    "worker-2": ("worker", "--concurrency", "2"),
    "reconciler": ("reconciler",),
}


class TwoReleases(Site):
    """A deployment on the first release's database, whose processes are of either release."""

    settings: ClassVar[Mapping[str, float]] = {"lease": LEASE, "report_interval": 5.0}
    """What both releases understand."""

    def __init__(self, directory: Path, database_url: str, redis: RedisServer) -> None:
        self.first = Release(directory / "first", FIRST)
        self.running: dict[str, list[Process]] = {}
        super().__init__(directory, database_url, redis)

    def migrate(self, database_url: str) -> None:
        """Create the tables as the first release does."""
        del database_url
        self._run("first", "db", "upgrade")

    def start(self) -> TwoReleases:
        """Start the first release's processes."""
        self.begin("first")
        self.create_share_types()
        return self

    def upgrade(self) -> None:
        """Bring the tables up to date, while the first release uses them."""
        self._run("this", "db", "upgrade")

    def begin(self, release: str) -> None:
        """Start a process of each role of a release."""
        self.running[release] = [
            self._process(release, name, *words).start() for name, words in ROLES.items()
        ]

    def end(self, release: str) -> None:
        """Stop a release's processes as an operator does."""
        for process in self.running[release]:
            process.signal(signal.SIGTERM)
        for process in self.running.pop(release):
            assert process.wait() == 0, process.output()[-4000:]

    def works(self, release: str) -> bool:
        """Whether a worker that runs now has done a step."""
        pids = {str(pid) for process in self.running[release] for pid in process.children()}
        steps = self.external.rows("SELECT DISTINCT worker FROM operation_steps")
        return bool(pids & {str(step["worker"]).rpartition(":")[2] for step in steps})

    def _run(self, release: str, *words: str) -> None:
        process = self._process(release, words[0], *words).start()
        assert process.wait() == 0, process.output()

    def _process(self, release: str, name: str, *words: str) -> Process:
        log, env = self.directory / f"{release}-{name}.log", self.env
        named = (*words, "--name", f"{release}-{name}") if words[0] == "worker" else words
        if release == "first":
            return self.first.process(*named, log=log, env=env)
        return Process(python("scheduler.cli", *named), log=log, env=env)

    def close(self) -> None:
        """Kill every process."""
        for processes in self.running.values():
            for process in processes:
                process.close()
        super().close()


def test_it_is_upgraded_and_rolled_back_under_load(tmp_path: Path, postgres_url: str) -> None:
    with ExitStack() as made:
        redis = RedisServer()
        made.callback(redis.close)
        redis.start()
        site = TwoReleases(tmp_path / "site", postgres_url, redis)
        made.callback(site.close)
        site.start()
        with judged(site) as traffic:
            ended(traffic, 20)
            site.upgrade()
            ended(traffic, 10)
            for new, old in (("this", "first"), ("first", "this"), ("this", "first")):
                site.begin(new)
                wait_until(partial(site.works, new), f"{new} release's workers do steps")
                ended(traffic, 20)
                site.end(old)
                ended(traffic, 20)
        # Producers were refused what cannot be (two want the same thing), but nothing failed.
        failed = {code for code in traffic.counts if code.startswith("ended")}
        assert failed <= {"ended: conflict"}
