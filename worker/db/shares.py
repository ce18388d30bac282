"""Shares: conversion of rows to values, and changes of status."""

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
    """Return the value of a share's row, as drivers see it."""
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
    """Return a share's row and its share server (None in ``single_svm``).

    Raises :class:`~worker.errors.Fatal` when the share no longer exists.
    """
    row = _SHARE_AND_SERVER.first(connection, object_id=share_id)
    if row is None:
        raise gone(ObjectKind.SHARE, share_id)
    return row, servers.server_of(row, _AT) if row.at_id else None


def share_row(connection: Connection, share_id: str) -> Row[Any]:
    """Return a share's row for a step; raise Fatal when the share no longer exists."""
    return row_of(connection, _SHARE, share_id, ObjectKind.SHARE)


_SHARE, _SNAPSHOT, _NETWORK = by_id(shares), by_id(snapshots), by_id(share_networks)


def set_share(
    connection: Connection, share_id: str, status: ShareStatus, **values: Any
) -> Row[Any]:
    """Change a share's status and other columns; return its row.

    Raises when its transitions do not allow the status.
    """
    return move(connection, shares, share_id, status, values)


def set_share_if_allowed(
    connection: Connection, share_id: str, status: ShareStatus, **values: Any
) -> None:
    """Change a share as :func:`set_share` does, or do nothing when the status is not allowed."""
    moved(connection, shares, share_id, status, values)


_ATTACH = Prepared(
    update(shares)
    .where(shares.c.id == bindparam("share"))
    .values(share_server_id=bindparam("server"))
)


def attach_server(connection: Connection, share_id: str, server_id: str | None) -> None:
    """Store the id of a share's server on the share."""
    _ATTACH.run(connection, share=share_id, server=server_id)


def server_of_snapshot(connection: Connection, snapshot_id: str) -> str | None:
    """Return the id of the server of a snapshot's share, where copies are created if possible."""
    return connection.execute(
        select(shares.c.share_server_id)
        .join(snapshots, snapshots.c.share_id == shares.c.id)
        .where(snapshots.c.id == snapshot_id)
    ).scalar()


def has_share(connection: Connection, share_id: str) -> bool:
    """Tell whether a share exists."""
    found = connection.execute(select(shares.c.id).where(shares.c.id == share_id))
    return found.first() is not None


def hold_share(connection: Connection, share_id: str) -> bool:
    """Lock a share's row until the commit; False when the share no longer exists."""
    held = connection.execute(select(shares.c.id).where(shares.c.id == share_id).with_for_update())
    return held.first() is not None


def share_failed(
    connection: Connection, share_id: str, error: Mapping[str, str], *, undone: bool
) -> None:
    """Put a share that could not be created in error, unless its delete was accepted.

    Until all steps are ``undone`` it keeps its server and its reservation.
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
    """Store the size that a share was found to have; False when it no longer has ``status``."""
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
    """Store the new export locations of a share, or why it is not served; return its row.

    None when another operation has changed its status meanwhile.
    """
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
    """Return ids of the exported shares of a server; None stands for the predefined server."""
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
    # A share that could not be created was never exported.
    return [row.id for row in rows if row.export_locations]


_REMOVE_RULES = Prepared(delete(access_rules).where(access_rules.c.share_id == bindparam("share")))
_REMOVE_SHARE = Prepared(
    delete(shares)
    .where(shares.c.id == bindparam("share"))
    .returning(shares.c.backend, shares.c.pool, shares.c.allocated_gib)
)


def remove_share(connection: Connection, share_id: str) -> None:
    """Delete a share's row, access rules and reservation, after the share itself is deleted."""
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
