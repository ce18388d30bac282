"""The cache of storage pools that a scheduler process places shares by.

It is sorted by preference, so that a choice checks the few best pools and not all of them. Once a
second it reads the rows that have changed.
"""

from __future__ import annotations

import time
from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from sqlalchemy import Connection, Engine, Row, Select, or_, select, tuple_

from scheduler.placement.pools import Pool, PoolSpec
from scheduler.placement.weighers import preference
from worker.config import Config
from worker.db.core.engine import db_now, reading
from worker.db.tables.main import backends, storage_pools
from worker.model import DriverMode

CACHE_SECONDS: Final = 1.0
WHOLE_SECONDS: Final = 60.0
"""Seconds between reads of all pools: a deleted row cannot be found by its time of change."""
SENT_SECONDS: Final = 10.0
"""Seconds for which a choice shows where a share server is about to be built."""
SENT_NETWORKS: Final = 1_000
"""Number of share networks to remember before all are forgotten: they are only a hint."""
OPEN_SECONDS: Final = 10.0
"""Longest time, in seconds, between a change and its commit for the next read to find it."""

SAME_REPORT_SECONDS: Final = 1.0
"""Seconds by which a pool's time of report may precede its backend's in the same report.

A pool is written right after its backend, but the clock may be set back in between.
"""

Ranked = tuple[float, str, Pool]
"""A pool with its sort key: the most preferred comes first, equals by name."""


class PoolTable:
    """Pools grouped by offer and sorted by preference; updated pool by pool."""

    def __init__(self, pools: Iterable[Pool] = (), *, now: float = 0.0) -> None:
        self.now = now
        """Time of the last read, on the database's clock."""
        self._ranked: dict[PoolSpec, list[Ranked]] = {}
        self._of_backend: dict[str, dict[str, Pool]] = {}
        for pool in pools:
            self._note(pool)
            self._ranked.setdefault(pool.offer, []).append(_ranked(pool))
        for of_one_offer in self._ranked.values():
            of_one_offer.sort()

    def __iter__(self) -> Iterator[Pool]:
        return (pool for pools in self._of_backend.values() for pool in pools.values())

    def ranked(self) -> Iterable[tuple[PoolSpec, list[Ranked]]]:
        """Return the pools of each offer, the most preferred first."""
        return self._ranked.items()

    def of_backend(self, backend: str) -> Iterable[Ranked]:
        """Return the pools of a backend, unsorted; none for an unknown backend."""
        return map(_ranked, self._of_backend.get(backend, {}).values())

    @property
    def has_choice(self) -> bool:
        """Whether there is more than one backend."""
        return len(self._of_backend) > 1

    def put(self, pool: Pool) -> None:
        """Add a pool, or replace its earlier values."""
        self.remove(pool)
        self._note(pool)
        insort(self._ranked.setdefault(pool.offer, []), _ranked(pool))

    def remove(self, pool: Pool) -> None:
        """Remove the pool of the same key, if there is one."""
        of_its_backend = self._of_backend.get(pool.backend, {})
        known = of_its_backend.pop(pool.key, None)
        if known is not None:
            of_its_offer = self._ranked[known.offer]
            del of_its_offer[bisect_left(of_its_offer, _ranked(known))]
            if not of_its_offer:
                del self._ranked[known.offer]
            if not of_its_backend:
                del self._of_backend[known.backend]

    def _note(self, pool: Pool) -> None:
        self._of_backend.setdefault(pool.backend, {})[pool.key] = pool


def _ranked(pool: Pool) -> Ranked:
    return -preference(pool), pool.key, pool


def cache_for(config: Config, engine: Engine) -> PoolCache:
    """Return a new, empty cache for a process."""
    return PoolCache(engine, config.engine.max_over_subscription_ratio, config.backends.keys())


def load(
    connection: Connection,
    ratio: float,
    *,
    configured: Collection[str],
    since: float | None,
    also: Iterable[Pool] = (),
) -> tuple[float, list[Pool]]:
    """Read the pools that have changed ``since`` (None: all), and the pools ``also``.

    Return the database's time before the read, and the pools of ``configured`` backends.
    """
    now: float = connection.execute(select(db_now())).scalar_one()
    b, p = backends.c, storage_pools.c
    wanted: Select[Any] = select(
        p.backend, p.name, p.total_gib, p.free_gib, p.allocated_gib, p.shares, p.capabilities,
        b.enabled, b.report, b.reported_at, p.reported_at.label("listed_at"),
    ).join_from(storage_pools, backends, b.name == p.backend)  # fmt: skip
    if since is not None:
        keys = [(pool.backend, pool.name) for pool in also]
        changed = or_(p.changed_at > since, b.changed_at > since)
        wanted = wanted.where(or_(changed, tuple_(p.backend, p.name).in_(keys)))
    # A backend that was removed from the configuration no longer has a queue.
    rows = (row for row in connection.execute(wanted) if row.report and row.backend in configured)
    return now, [_pool(row, ratio) for row in rows]


def _pool(row: Row[Any], ratio: float) -> Pool:
    capabilities: Mapping[str, str] = row.capabilities
    return Pool(
        backend=row.backend,
        name=row.name,
        offer=PoolSpec(
            enabled=row.enabled,
            mode=DriverMode(row.report["mode"]),
            protocols=frozenset(row.report["protocols"]),
            network_kinds=frozenset(row.report["network_kinds"]),
            capabilities=frozenset(capabilities.items()),
        ),
        reported_at=row.reported_at,
        is_listed=row.listed_at >= row.reported_at - SAME_REPORT_SECONDS,
        promisable_gib=int(row.total_gib * ratio),
        free_gib=row.free_gib,
        allocated_gib=row.allocated_gib,
        shares=row.shares,
    )


@dataclass(slots=True)
class PoolCache:
    """Cache of a process's pool table: at most a second old, with its own choices added."""

    engine: Engine
    ratio: float
    """Ratio of the capacity that may be reserved on a pool to the pool's size."""
    configured: Collection[str]
    """Names of the configured backends."""
    _pool_table: PoolTable = field(default_factory=PoolTable)
    _invalidated: dict[str, Pool] = field(default_factory=dict)
    _sent: dict[tuple[str, str], tuple[str, float]] = field(default_factory=dict)
    _looked_at: float = field(default=-CACHE_SECONDS * 2)
    _whole_at: float = field(default=-WHOLE_SECONDS * 2)

    def pool_table(self, *, fresh: bool = False) -> PoolTable:
        """Return the pool table; read changes first if it is too old, or with ``fresh``."""
        before = time.monotonic()
        if not fresh and before - self._looked_at <= CACHE_SECONDS:
            return self._pool_table
        whole = before - self._whole_at > WHOLE_SECONDS
        since = None if whole else self._pool_table.now - OPEN_SECONDS
        with reading(self.engine) as connection:
            now, pools = load(
                connection,
                self.ratio,
                configured=self.configured,
                since=since,
                also=self._invalidated.values(),
            )
        if whole:
            self._pool_table = PoolTable(pools)
            self._whole_at = before
        else:
            for pool in self._invalidated.values():
                self._pool_table.remove(pool)
            for pool in pools:
                self._pool_table.put(pool)
        self._invalidated.clear()
        self._pool_table.now = now
        self._looked_at = before
        return self._pool_table

    def invalidate(self, pool: Pool) -> None:
        """Read a pool again with the next changes, even if its row has not changed."""
        self._invalidated[pool.key] = pool

    def chosen(self, pool: Pool, size: int) -> None:
        """Add a choice to the table, so that the next choices take it into account.

        The pool is read again, because the transaction may still be rolled back.
        """
        self.invalidate(pool)
        self._pool_table.put(
            replace(pool, allocated_gib=pool.allocated_gib + size, shares=pool.shares + 1)
        )

    def sent(self, project_id: str, network_id: str, backend: str) -> None:
        """Remember the backend of a project's share, for the next ones on its share network."""
        if len(self._sent) >= SENT_NETWORKS:
            self._sent.clear()
        self._sent[project_id, network_id] = backend, time.monotonic()

    def lately(self, project_id: str, network_id: str) -> str | None:
        """Return the backend of the project's last share on a share network, if it is recent."""
        backend, at = self._sent.get((project_id, network_id), (None, 0.0))
        return backend if time.monotonic() - at <= SENT_SECONDS else None
