"""The snapshot of storage pools that a process places by.

It is kept in the order in which pools are preferred, so that a choice looks at the best few and
not at all of them; once a second it takes in what has changed.
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
"""How often all is read anew: a pool that is gone leaves no change behind."""
SENT_SECONDS: Final = 10.0
"""How long a choice tells where a share server is about to be, before its row does."""
SENT_NETWORKS: Final = 1_000
"""So many share networks are noted before all are forgotten: it is only a hint."""
OPEN_SECONDS: Final = 10.0
"""How long a change may wait for its commit and still be seen by a look at what has changed."""

SAME_REPORT_SECONDS: Final = 1.0
"""A pool is written right after its backend; a clock may be set back in between."""

Ranked = tuple[float, str, Pool]
"""A pool in its place: what is preferred most comes first, equals by name."""


class PoolTable:
    """Pools by what they offer, and in their order; changed pool by pool."""

    def __init__(self, pools: Iterable[Pool] = (), *, now: float = 0.0) -> None:
        self.now = now
        """When it was read, by the database's clock."""
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
        """Return the pools of each offer, the preferred ones first."""
        return self._ranked.items()

    def of_backend(self, backend: str) -> Iterable[Ranked]:
        """Return the pools of a backend, in no order; none when it is not known."""
        return map(_ranked, self._of_backend.get(backend, {}).values())

    @property
    def has_choice(self) -> bool:
        """Whether there is more than one backend."""
        return len(self._of_backend) > 1

    def put(self, pool: Pool) -> None:
        """Add a pool, or let it take the place of what was known of it."""
        self.remove(pool)
        self._note(pool)
        insort(self._ranked.setdefault(pool.offer, []), _ranked(pool))

    def remove(self, pool: Pool) -> None:
        """Forget a pool, whatever its numbers were; not knowing it is fine."""
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
    """Return the (still empty) cache of a process."""
    return PoolCache(engine, config.engine.max_over_subscription_ratio, config.backends.keys())


def load(
    connection: Connection,
    ratio: float,
    *,
    configured: Collection[str],
    since: float | None,
    also: Iterable[Pool] = (),
) -> tuple[float, list[Pool]]:
    """Read the pools that have changed ``since`` (or all), and the database's time before that.

    ``also`` are pools to read whether they have changed or not.
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
    # A backend that was taken out of the configuration has no queue any more.
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
    """The snapshot that a process places by: at most a second old, but for its own choices."""

    engine: Engine
    ratio: float
    """How far pools may be over-subscribed."""
    configured: Collection[str]
    """The backends that there are."""
    _pool_table: PoolTable = field(default_factory=PoolTable)
    _invalidated: dict[str, Pool] = field(default_factory=dict)
    _sent: dict[tuple[str, str], tuple[str, float]] = field(default_factory=dict)
    _looked_at: float = field(default=-CACHE_SECONDS * 2)
    _whole_at: float = field(default=-WHOLE_SECONDS * 2)

    def pool_table(self, *, fresh: bool = False) -> PoolTable:
        """Return the snapshot, with what has changed if it is old or ``fresh`` is asked for."""
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
        """Have a pool read again with the next changes, though it may have changed nothing."""
        self._invalidated[pool.key] = pool

    def chosen(self, pool: Pool, size: int) -> None:
        """Note a choice, so that the next one of this second does not fall on the same pool.

        It may be rolled back yet, so it is in doubt.
        """
        self.invalidate(pool)
        self._pool_table.put(
            replace(pool, allocated_gib=pool.allocated_gib + size, shares=pool.shares + 1)
        )

    def sent(self, project_id: str, network_id: str, backend: str) -> None:
        """Note where a project's share goes: the next ones on its share network may follow it."""
        if len(self._sent) >= SENT_NETWORKS:
            self._sent.clear()
        self._sent[project_id, network_id] = backend, time.monotonic()

    def lately(self, project_id: str, network_id: str) -> str | None:
        """Return where the project's last share on a share network went, a moment ago."""
        backend, at = self._sent.get((project_id, network_id), (None, 0.0))
        return backend if time.monotonic() - at <= SENT_SECONDS else None
