"""Shares, snapshots, access rules, networks and types: rows to values, and their status changes.

A status is written only along its transition table (``worker.model``); a write that finds another
status than it may come from changes nothing and raises.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import (
    Connection,
    Row,
    Table,
    bindparam,
    case,
    delete,
    func,
    select,
    update,
)

from worker.db import audits, servers
from worker.db.documents import export_locations
from worker.db.engine import db_now
from worker.db.prepared import Prepared
from worker.db.tables import (
    access_rules,
    share_networks,
    share_servers,
    shares,
    snapshots,
    storage_pools,
)
from worker.errors import ErrorCode, Fatal
from worker.model import (
    SHARE_TRANSITIONS,
    SNAPSHOT_TRANSITIONS,
    NetworkKind,
    OwnerKind,
    Share,
    ShareNetwork,
    ShareServer,
    ShareStatus,
    Snapshot,
    SnapshotStatus,
    sources,
)


def share_of(row: Row[Any]) -> Share:
    """A share's row as drivers see it."""
    return Share(
        id=row.id,
        project_id=row.project_id,
        size=row.size,
        share_proto=row.share_proto,
        backend=row.backend,
        pool=row.pool,
        name=row.name,
        share_server_id=row.share_server_id,
        export_locations=export_locations(row.export_locations),
    )


def snapshot_of(row: Row[Any]) -> Snapshot:
    """A snapshot's row as drivers see it."""
    return Snapshot(row.id, row.share_id, row.project_id, row.size)


def network_of(row: Row[Any]) -> ShareNetwork:
    """A share network's row as helpers see it."""
    return ShareNetwork(
        id=row.id,
        project_id=row.project_id,
        kind=NetworkKind(row.kind),
        name=row.name,
        description=row.description,
        neutron_net_id=row.neutron_net_id,
        neutron_subnet_id=row.neutron_subnet_id,
        nova_network_id=row.nova_network_id,
        flat_network_ip_pool=tuple(row.flat_network_ip_pool or ()),
        flat_network_subnet=row.flat_network_subnet,
        flat_network_gateway=row.flat_network_gateway,
        dhcp_endpoint=row.dhcp_endpoint,
        cidr=row.cidr,
        is_public=row.is_public,
        security_key=row.security_key,
    )


_AT = "at_"
_SHARE_AND_SERVER = Prepared(
    select(shares, *(column.label(_AT + column.name) for column in servers.SEEN))
    .join(share_servers, share_servers.c.id == shares.c.share_server_id, isouter=True)
    .where(shares.c.id == bindparam("object_id"))
)


def share_and_server(connection: Connection, share_id: str) -> tuple[Row[Any], ShareServer | None]:
    """Return a share's row and the server that it lives on (None in ``single_svm``).

    Raises :class:`~worker.errors.Fatal` when the share is gone.
    """
    row = _SHARE_AND_SERVER.first(connection, object_id=share_id)
    if row is None:
        raise _gone("share", share_id)
    return row, servers.server_of(row, _AT) if row.at_id else None


def share_row(connection: Connection, share_id: str) -> Row[Any]:
    """Return a share's row for a step; its absence means the operation's object is gone."""
    return _row(connection, _SHARE, share_id, "share")


def snapshot_row(connection: Connection, snapshot_id: str) -> Row[Any]:
    """Return a snapshot's row for a step."""
    return _row(connection, _SNAPSHOT, snapshot_id, "snapshot")


def network(connection: Connection, network_id: str) -> ShareNetwork:
    """Return a share network for a step."""
    return network_of(_row(connection, _NETWORK, network_id, "share network"))


def _by_id(table: Table) -> Prepared:
    return Prepared(select(table).where(table.c.id == bindparam("object_id")))


_SHARE, _SNAPSHOT, _NETWORK = _by_id(shares), _by_id(snapshots), _by_id(share_networks)


def _row(connection: Connection, by_id: Prepared, object_id: str, kind: str) -> Row[Any]:
    row = by_id.first(connection, object_id=object_id)
    if row is None:
        raise _gone(kind, object_id)
    return row


def _gone(kind: str, object_id: str) -> Fatal:
    return Fatal(
        f"The {kind} {object_id} does not exist any more.",
        object=f"{kind} {object_id}",
        code=ErrorCode.NOT_FOUND,
    )


def set_share(
    connection: Connection, share_id: str, status: ShareStatus, **values: Any
) -> Row[Any]:
    """Move a share to a status along its transitions, with other columns; return its row."""
    return _move(connection, shares, share_id, status, values)


def set_share_if_allowed(
    connection: Connection, share_id: str, status: ShareStatus, **values: Any
) -> None:
    """As :func:`set_share`; a share that may not go there any more stays as it is."""
    _moved(connection, shares, share_id, status, values)


def set_snapshot(
    connection: Connection, snapshot_id: str, status: SnapshotStatus, **values: Any
) -> Row[Any]:
    """Move a snapshot to a status along its transitions, with other columns; return its row."""
    return _move(connection, snapshots, snapshot_id, status, values)


_TRANSITIONS: Final[Mapping[Table, Mapping[tuple[Any, Any], str]]] = {
    shares: SHARE_TRANSITIONS,
    snapshots: SNAPSHOT_TRANSITIONS,
}


@functools.cache
def _moving(table: Table, status: StrEnum, names: tuple[str, ...]) -> Prepared:
    return Prepared(
        update(table)
        .where(
            table.c.id == bindparam("object_id"),
            table.c.status.in_(sources(_TRANSITIONS[table], status)),
        )
        .values(
            status=status.value,
            updated_at=db_now(),
            **{name: bindparam(f"new_{name}") for name in names},
        )
        .returning(*table.c)
    )


def _moved(
    connection: Connection,
    table: Table,
    object_id: str,
    status: StrEnum,
    values: Mapping[str, Any],
) -> Row[Any] | None:
    return _moving(table, status, tuple(values)).first(
        connection,
        object_id=object_id,
        **{f"new_{name}": value for name, value in values.items()},
    )


def _move(
    connection: Connection,
    table: Table,
    object_id: str,
    status: StrEnum,
    values: Mapping[str, Any],
) -> Row[Any]:
    row = _moved(connection, table, object_id, status, values)
    if row is None:
        kind = table.name.removesuffix("s")
        raise Fatal(
            f"The {kind} {object_id} cannot become {status} from where it is now.",
            object=f"{kind} {object_id}",
            code=ErrorCode.CONFLICT,
        )
    return row


_ATTACH = Prepared(
    update(shares)
    .where(shares.c.id == bindparam("share"))
    .values(share_server_id=bindparam("server"))
)


def attach_server(connection: Connection, share_id: str, server_id: str | None) -> None:
    """Note on the share which server it lives on."""
    _ATTACH.run(connection, share=share_id, server=server_id)


def has_share(connection: Connection, share_id: str) -> bool:
    """Whether a share's row is still there."""
    found = connection.execute(select(shares.c.id).where(shares.c.id == share_id))
    return found.first() is not None


def hold_share(connection: Connection, share_id: str) -> bool:
    """Keep a share's row as it is until the commit; False when it is gone."""
    held = connection.execute(select(shares.c.id).where(shares.c.id == share_id).with_for_update())
    return held.first() is not None


def has_snapshot(connection: Connection, snapshot_id: str) -> bool:
    """Whether a snapshot's row is still there."""
    found = connection.execute(select(snapshots.c.id).where(snapshots.c.id == snapshot_id))
    return found.first() is not None


def share_failed(
    connection: Connection, share_id: str, error: Mapping[str, str], *, undone: bool
) -> None:
    """A create failed: the share is in error, unless its delete was accepted.

    While not all is undone, it keeps its server and its reservation.
    """
    released: dict[str, Any] = {"share_server_id": None} if undone else {}
    connection.execute(
        update(shares)
        .where(shares.c.id == share_id)
        .values(
            status=case(
                (shares.c.status == ShareStatus.DELETING.value, shares.c.status),
                else_=ShareStatus.ERROR.value,
            ),
            error=dict(error),
            export_locations=[],
            updated_at=db_now(),
            **released,
        )
    )
    if undone:
        free_capacity(connection, share_id)


def ensured(
    connection: Connection,
    share_id: str,
    *,
    locations: Sequence[Any] | None = None,
    error: Mapping[str, str] | None = None,
) -> Row[Any] | None:
    """Write whether a share is served again; None when something else came of it meanwhile."""
    status = ShareStatus.AVAILABLE if error is None else ShareStatus.ERROR
    exported = {} if locations is None else {"export_locations": list(locations)}
    return connection.execute(
        update(shares)
        .where(
            shares.c.id == share_id,
            shares.c.status.in_((ShareStatus.AVAILABLE.value, ShareStatus.ERROR.value)),
        )
        .values(
            status=status.value,
            error=None if error is None else dict(error),
            updated_at=db_now(),
            **exported,
        )
        .returning(*shares.c)
    ).first()


def made_on(connection: Connection, backend: str, server_id: str | None) -> list[str]:
    """Return the shares of a server (None: the predefined one) that clients may be using."""
    rows = connection.execute(
        select(shares.c.id, shares.c.status, shares.c.export_locations)
        .where(
            shares.c.backend == backend,
            shares.c.share_server_id == server_id,
            shares.c.status.in_(
                (
                    ShareStatus.AVAILABLE.value,
                    ShareStatus.EXTENDING.value,
                    ShareStatus.ERROR.value,
                )
            ),
        )
        .order_by(shares.c.created_at, shares.c.id)
    )
    # One whose create failed was never exported.
    return [row.id for row in rows if row.export_locations]


def snapshot_failed(connection: Connection, snapshot_id: str, error: Mapping[str, str]) -> None:
    """A snapshot's create failed: it is in error, unless its delete was accepted."""
    connection.execute(
        update(snapshots)
        .where(snapshots.c.id == snapshot_id, snapshots.c.status == SnapshotStatus.CREATING.value)
        .values(status=SnapshotStatus.ERROR.value, error=dict(error), updated_at=db_now())
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
    """Give back what is reserved for a share on its pool; nothing reserved is fine."""
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
    """Reserve further GiB for a share on its pool; False when the pool has not that much."""
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
    """Undo :func:`reserve_more`."""
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


_REMOVE_RULES = Prepared(delete(access_rules).where(access_rules.c.share_id == bindparam("share")))
_REMOVE_SHARE = Prepared(
    delete(shares)
    .where(shares.c.id == bindparam("share"))
    .returning(shares.c.backend, shares.c.pool, shares.c.allocated_gib)
)


def remove_share(connection: Connection, share_id: str) -> None:
    """Nothing of the share is left: its row, its rules and its reservation go."""
    audits.bury(connection, OwnerKind.SHARE, share_id)
    _REMOVE_RULES.run(connection, share=share_id)
    removed = _REMOVE_SHARE.first(connection, share=share_id)
    if removed is not None and removed.allocated_gib:
        _RETURN_CAPACITY.run(
            connection,
            of_backend=removed.backend,
            pool=removed.pool,
            size=removed.allocated_gib,
        )


def remove_snapshot(connection: Connection, snapshot_id: str) -> None:
    """Nothing of the snapshot is left: its row goes."""
    audits.bury(connection, OwnerKind.SNAPSHOT, snapshot_id)
    connection.execute(delete(snapshots).where(snapshots.c.id == snapshot_id))


_COUNT_SNAPSHOTS = Prepared(
    select(func.count().label("number"))
    .select_from(snapshots)
    .where(snapshots.c.share_id == bindparam("share"))
)


def snapshots_of(connection: Connection, share_id: str) -> int:
    """How many snapshots a share has."""
    [row] = _COUNT_SNAPSHOTS.all(connection, share=share_id)
    return int(row.number)


# Access rules: rows with states, handed to the driver as a whole with a generation.
