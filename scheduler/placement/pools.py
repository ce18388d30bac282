"""Storage pools as frozen values: what the backends last reported.

Pools that differ in numbers only share one :class:`Offer`, which placement judges once for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Float, and_, bindparam, exists, update

from worker.db.core.prepared import Prepared
from worker.db.tables.main import backends, storage_pools
from worker.model import DriverMode


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """What a pool has to offer, its numbers apart."""

    enabled: bool
    mode: DriverMode
    protocols: frozenset[str]
    network_kinds: frozenset[str]
    capabilities: frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Pool:
    """A storage pool and its backend, as last reported. Sizes are whole GiB."""

    backend: str
    name: str
    offer: PoolSpec
    reported_at: float
    """When its backend last reported, by the database's clock."""
    is_listed: bool
    """Whether that report had this pool."""
    promisable_gib: int
    """What all its shares may be promised together, over-subscription included."""
    free_gib: int
    allocated_gib: int
    shares: int

    @property
    def key(self) -> str:
        """How people are told of it."""
        return f"{self.backend}#{self.name}"


_p: Any = storage_pools.c
_RESERVE = Prepared(
    update(storage_pools)
    .where(
        _p.backend == bindparam("of_backend"),
        _p.name == bindparam("pool"),
        _p.allocated_gib + bindparam("size") <= _p.total_gib * bindparam("ratio", type_=Float),
        exists().where(and_(backends.c.name == bindparam("of_backend"), backends.c.enabled)),
    )
    .values(allocated_gib=_p.allocated_gib + bindparam("size"), shares=_p.shares + 1)
)


def reserve(connection: Connection, pool: Pool, size: int, ratio: float) -> bool:
    """Promise ``size`` GiB of a pool if it (still) has them; part of the share's transaction."""
    changed = _RESERVE.run(
        connection, of_backend=pool.backend, pool=pool.name, size=size, ratio=ratio
    )
    return changed == 1
