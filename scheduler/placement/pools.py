"""Storage pools as frozen values, as the backends last reported them.

Pools that differ only in numbers share one :class:`PoolSpec`, which placement checks once.
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
    """Properties of a pool other than its numbers: state, mode, protocols and capabilities."""

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
    """Time of its backend's last report, on the database's clock."""
    is_listed: bool
    """Whether that report included this pool."""
    promisable_gib: int
    """Capacity that all its shares may reserve together, over-subscription included."""
    free_gib: int
    allocated_gib: int
    shares: int

    @property
    def key(self) -> str:
        """The pool's name for people: ``backend#pool``."""
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
    """Reserve ``size`` GiB of a pool; False when it has too little left or is disabled.

    It is part of the transaction that writes the share.
    """
    changed = _RESERVE.run(
        connection, of_backend=pool.backend, pool=pool.name, size=size, ratio=ratio
    )
    return changed == 1
