"""Storage pools as frozen values: what the backends last reported.

Pools that differ in numbers only share one :class:`Offer`, which placement judges once for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, exists, update

from worker.db.tables import backends, storage_pools
from worker.model import DriverMode


@dataclass(frozen=True, slots=True)
class Offer:
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
    offer: Offer
    reported_at: float
    """By the database's clock."""
    promisable_gib: int
    """What all its shares may be promised together, over-subscription included."""
    free_gib: int
    allocated_gib: int
    shares: int

    @property
    def key(self) -> str:
        """How people are told of it."""
        return f"{self.backend}#{self.name}"


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
