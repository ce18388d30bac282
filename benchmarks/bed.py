"""What every measure stands on: private services, rounds that alternate, CPU by the kernel's books.

Numbers of one run are only compared with each other: sides of a comparison take turns (A B A B),
each round gives a ratio of its own, and what is reported is the median.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeVar

import psutil

from tests.support.services import PostgresServer, RedisServer
from worker.config import Config, load
from worker.db.core.engine import engine_for, statement

T = TypeVar("T")

Figures = dict[str, float]
"""What a measure found, by the full name of each figure."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is done: ``rounds`` of each comparison, ``full`` or quick sizes."""

    full: bool

    @property
    def rounds(self) -> int:
        """At least five for a figure that counts."""
        return 5 if self.full else 2

    def pick(self, full: int, quick: int) -> int:
        """The one or the other size."""
        return full if self.full else quick


@dataclass(slots=True)
class Bed:
    """Services and directories of one measure; all end with its ``with``."""

    scale: Scale
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def ends_with(self, close: Callable[[], None]) -> None:
        """Close something when the measure ends, whatever happens."""
        self._stack.callback(close)

    def directory(self) -> Path:
        """An empty directory."""
        return Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="sw-bench-")))

    def redis(self) -> RedisServer:
        """A Redis without AOF, as the baseline has it."""
        server = RedisServer()
        self.ends_with(server.close)
        return server.start()

    def postgres(self) -> PostgresServer:
        """A PostgreSQL that keeps its promises: with fsync."""
        server = PostgresServer(fsync=True)
        self.ends_with(server.close)
        return server.start()

    def configuration(self, database_url: str, redis: RedisServer | None = None) -> Config:
        """A configuration with one fake backend, for measures that run in this process."""
        path = self.directory() / "sharewright.toml"
        broker = (
            f'[broker]\nurl = "{redis.url()}"\nresult_backend = "{redis.url(1)}"\n' if redis else ""
        )
        path.write_text(
            f'state_dir = "{path.parent}"\n[database]\nurl = "{database_url}"\n{broker}'
            '[backends.fake]\nmode = "flat_multi_svm"\nshare_driver = "fake"\n'
            'compute_helper = "fake"\nnetwork_helpers = ["fake"]\n'
        )
        return load(path)


def tidy(url: str) -> None:
    """Do now what autovacuum would do after a bulk load, in the middle of what is measured."""
    with statement(engine_for(url)) as connection:
        connection.exec_driver_sql("ANALYZE" if url.startswith("sqlite") else "VACUUM ANALYZE")


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU that processes and all they ever started have used, in user and system mode.

    What has ended stands in its parent's account of children (PostgreSQL's closed connections).
    """
    total = 0.0
    for pid in pids:
        leader = psutil.Process(pid)
        for process in (leader, *leader.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
                total += times.children_user + times.children_system
    return total


def own_cpu(action: Callable[[], object]) -> float:
    """CPU seconds of this process for one call."""
    before = time.process_time()
    action()
    return time.process_time() - before


def seconds(action: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    before = time.perf_counter()
    action()
    return time.perf_counter() - before


def take_turns(rounds: int, sides: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
    """A B C A B C ...: what each side gave, round by round."""
    found: dict[str, list[T]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            found[name].append(side())
    return found


def median(values: Iterable[float]) -> float:
    """The median, to four significant figures' worth of noise."""
    return statistics.median(values)


def ratio(over: Iterable[float], under: Iterable[float]) -> float:
    """The median of the rounds' own ratios, so that what slows a whole round cancels out."""
    return median(a / b for a, b in zip(over, under, strict=True))
