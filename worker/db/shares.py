"""Shares: rows to values, and their status changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    Connection,
    Row,
    bindparam,
    case,
    delete,
    select,
    update,
)

from worker.db import audits
from worker.db.capacity import _RETURN_CAPACITY, free_capacity
from worker.db.core.engine import db_now
from worker.db.core.prepared import Prepared
from worker.db.documents import export_locations
from worker.db.share_servers import store as servers
from worker.db.statuses import by_id, gone, move, moved, row_of
from worker.db.tables.main import (
    access_rules,
    share_networks,
    share_servers,
    shares,
    snapshots,
)
from worker.errors import ObjectKind
from worker.model import (
    OwnerKind,
    Share,
    ShareServer,
    ShareStatus,
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
        raise gone(ObjectKind.SHARE, share_id)
    return row, servers.server_of(row, _AT) if row.at_id else None


def share_row(connection: Connection, share_id: str) -> Row[Any]:
    """Return a share's row for a step; its absence means the operation's object is gone."""
    return row_of(connection, _SHARE, share_id, ObjectKind.SHARE)


_SHARE, _SNAPSHOT, _NETWORK = by_id(shares), by_id(snapshots), by_id(share_networks)


def set_share(
    connection: Connection, share_id: str, status: ShareStatus, **values: Any
) -> Row[Any]:
    """Move a share to a status along its transitions, with other columns; return its row."""
    return move(connection, shares, share_id, status, values)


def set_share_if_allowed(
    connection: Connection, share_id: str, status: ShareStatus, **values: Any
) -> None:
    """As :func:`set_share`; a share that may not go there any more stays as it is."""
    moved(connection, shares, share_id, status, values)


_ATTACH = Prepared(
    update(shares)
    .where(shares.c.id == bindparam("share"))
    .values(share_server_id=bindparam("server"))
)


def attach_server(connection: Connection, share_id: str, server_id: str | None) -> None:
    """Note on the share which server it lives on."""
    _ATTACH.run(connection, share=share_id, server=server_id)


def server_of_snapshot(connection: Connection, snapshot_id: str) -> str | None:
    """Return the server of the share that a snapshot is of: copies are made there if they can."""
    return connection.execute(
        select(shares.c.share_server_id)
        .join(snapshots, snapshots.c.share_id == shares.c.id)
        .where(snapshots.c.id == snapshot_id)
    ).scalar()


def has_share(connection: Connection, share_id: str) -> bool:
    """Whether a share's row is still there."""
    found = connection.execute(select(shares.c.id).where(shares.c.id == share_id))
    return found.first() is not None


def hold_share(connection: Connection, share_id: str) -> bool:
    """Keep a share's row as it is until the commit; False when it is gone."""
    held = connection.execute(select(shares.c.id).where(shares.c.id == share_id).with_for_update())
    return held.first() is not None


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


def set_size(connection: Connection, share_id: str, status: ShareStatus, size: int) -> bool:
    """Write the size that a share was found to have; False when it has left that status."""
    changed = connection.execute(
        update(shares)
        .where(shares.c.id == share_id, shares.c.status == status.value)
        .values(status=ShareStatus.AVAILABLE.value, size=size, error=None, updated_at=db_now())
    )
    return changed.rowcount == 1


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


_REMOVE_RULES = Prepared(delete(access_rules).where(access_rules.c.share_id == bindparam("share")))
_REMOVE_SHARE = Prepared(
    delete(shares)
    .where(shares.c.id == bindparam("share"))
    .returning(shares.c.backend, shares.c.pool, shares.c.allocated_gib)
)


def remove_share(connection: Connection, share_id: str) -> None:
    """Nothing of the share is left: its row, its rules and its reservation go."""
    audits.add_tombstone(connection, OwnerKind.SHARE, share_id)
    _REMOVE_RULES.run(connection, share=share_id)
    removed = _REMOVE_SHARE.first(connection, share=share_id)
    if removed is not None and removed.allocated_gib:
        _RETURN_CAPACITY.run(
            connection,
            of_backend=removed.backend,
            pool=removed.pool,
            size=removed.allocated_gib,
        )
