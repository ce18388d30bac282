"""A cached snapshot of storage pools: what the backends last reported, as frozen values."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from sqlalchemy import Connection, Engine, and_, exists, select, update

from worker.db.engine import db_now, reading
from worker.db.tables import backends, storage_pools
from worker.model import DriverMode

CACHE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Pool:
    """A storage pool and its backend, as last reported. Sizes are whole GiB."""

    backend: str
    name: str
    enabled: bool
    age: float
    """Seconds since the report, by the database's clock."""
    mode: DriverMode
    protocols: frozenset[str]
    network_kinds: frozenset[str]
    total_gib: int
    free_gib: int
    allocated_gib: int
    shares: int
    capabilities: Mapping[str, str]

    @property
    def key(self) -> str:
        """How people are told of it."""
        return f"{self.backend}#{self.name}"


def load(connection: Connection) -> tuple[Pool, ...]:
    """Read every pool that was ever reported."""
    rows = connection.execute(
        select(
            storage_pools,
            backends.c.enabled,
            backends.c.report,
            (db_now() - backends.c.reported_at).label("age"),
        ).join(backends, backends.c.name == storage_pools.c.backend)
    )
    return tuple(
        Pool(
            backend=row.backend,
            name=row.name,
            enabled=row.enabled,
            age=row.age,
            mode=DriverMode(row.report["mode"]),
            protocols=frozenset(row.report["protocols"]),
            network_kinds=frozenset(row.report["network_kinds"]),
            total_gib=row.total_gib,
            free_gib=row.free_gib,
            allocated_gib=row.allocated_gib,
            shares=row.shares,
            capabilities=row.capabilities,
        )
        for row in rows
        if row.report
    )


@dataclass(slots=True)
class PoolCache:
    """The snapshot that a process places by: at most a second old, but for its own choices."""

    engine: Engine
    _pools: dict[tuple[str, str], Pool] = field(default_factory=dict)
    _loaded_at: float = field(default=-CACHE_SECONDS * 2)

    def pools(self, *, fresh: bool = False) -> list[Pool]:
        """Return the snapshot, read anew if it is old or ``fresh`` is asked for."""
        if fresh or time.monotonic() - self._loaded_at > CACHE_SECONDS:
            with reading(self.engine) as connection:
                self._pools = {(pool.backend, pool.name): pool for pool in load(connection)}
            self._loaded_at = time.monotonic()
        return list(self._pools.values())

    def chosen(self, pool: Pool, size: int) -> None:
        """Note a choice, so that the next one of this second does not fall on the same pool."""
        self._pools[pool.backend, pool.name] = replace(
            pool, allocated_gib=pool.allocated_gib + size, shares=pool.shares + 1
        )


def reserve(connection: Connection, pool: Pool, size: int, ratio: float) -> bool:
    """Promise ``size`` GiB of a pool if it (still) has them; part of the share's transaction."""
    column: Any = storage_pools.c
    promised = connection.execute(
        update(storage_pools)
        .where(
            column.backend == pool.backend,
            column.name == pool.name,
            column.allocated_gib + size <= column.total_gib * ratio,
            exists().where(and_(backends.c.name == pool.backend, backends.c.enabled)),
        )
        .values(allocated_gib=column.allocated_gib + size, shares=column.shares + 1)
    )
    return promised.rowcount == 1
