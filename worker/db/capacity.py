"""Capacity that shares reserve on their storage pools."""

from __future__ import annotations

from sqlalchemy import (
    Connection,
    bindparam,
    select,
    update,
)

from worker.db.core.prepared import Prepared
from worker.db.tables.main import (
    shares,
    storage_pools,
)

_RETURN_CAPACITY = Prepared(
    update(storage_pools)
    .where(
        storage_pools.c.backend == bindparam("of_backend"),
        storage_pools.c.name == bindparam("pool"),
    )
    .values(
        allocated_gib=storage_pools.c.allocated_gib - bindparam("size"),
        shares=storage_pools.c.shares - 1,
    )
)


def free_capacity(connection: Connection, share_id: str) -> None:
    """Release the capacity reserved for a share on its pool, if there is any."""
    held = connection.execute(
        select(shares.c.backend, shares.c.pool, shares.c.allocated_gib)
        .where(shares.c.id == share_id, shares.c.allocated_gib > 0)
        .with_for_update()
    ).first()
    if held is None:
        return
    connection.execute(update(shares).where(shares.c.id == share_id).values(allocated_gib=0))
    _RETURN_CAPACITY.run(
        connection, of_backend=held.backend, pool=held.pool, size=held.allocated_gib
    )


def reserve_more(connection: Connection, share_id: str, by: int, limit_ratio: float) -> bool:
    """Reserve ``by`` more GiB for a share on its pool; False when the pool has too little left."""
    row = connection.execute(
        select(shares.c.backend, shares.c.pool).where(shares.c.id == share_id)
    ).one()
    pool = storage_pools.c
    changed = connection.execute(
        update(storage_pools)
        .where(
            pool.backend == row.backend,
            pool.name == row.pool,
            pool.allocated_gib + by <= pool.total_gib * limit_ratio,
        )
        .values(allocated_gib=pool.allocated_gib + by)
    )
    if changed.rowcount == 0:
        return False
    connection.execute(
        update(shares)
        .where(shares.c.id == share_id)
        .values(allocated_gib=shares.c.allocated_gib + by)
    )
    return True


def return_some(connection: Connection, share_id: str, by: int) -> None:
    """Release ``by`` GiB that :func:`reserve_more` reserved."""
    row = connection.execute(
        update(shares)
        .where(shares.c.id == share_id)
        .values(allocated_gib=shares.c.allocated_gib - by)
        .returning(shares.c.backend, shares.c.pool)
    ).one()
    connection.execute(
        update(storage_pools)
        .where(storage_pools.c.backend == row.backend, storage_pools.c.name == row.pool)
        .values(allocated_gib=storage_pools.c.allocated_gib - by)
    )
