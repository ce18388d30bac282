"""Finding what a request names; another project's object is "not found"."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, Select, Table, or_, select

from worker.db.tables import access_rules, share_networks, share_types, shares, snapshots
from worker.errors import Conflict, NotFound


def _one(
    connection: Connection, statement: Select[Any], kind: str, name: str, *, field: str
) -> Row[Any]:
    row = connection.execute(statement).first()
    if row is None:
        raise NotFound(f"There is no {kind} {name}.", object=f"{kind} {name}", field=field)
    return row


def _owned(table: Table, object_id: str, project_id: str) -> Select[Any]:
    return select(table).where(table.c.id == object_id, table.c.project_id == project_id)


def share(connection: Connection, share_id: str, project_id: str) -> Row[Any]:
    """Return a share of the project, held for the rest of the transaction."""
    statement = _owned(shares, share_id, project_id).with_for_update()
    return _one(connection, statement, "share", share_id, field="share_id")


def snapshot(connection: Connection, snapshot_id: str, project_id: str) -> Row[Any]:
    """Return a snapshot of the project, held for the rest of the transaction."""
    statement = _owned(snapshots, snapshot_id, project_id).with_for_update()
    return _one(connection, statement, "snapshot", snapshot_id, field="snapshot_id")


def rule(connection: Connection, rule_id: str, share_id: str) -> Row[Any]:
    """Return an access rule of a share."""
    statement = select(access_rules).where(
        access_rules.c.id == rule_id, access_rules.c.share_id == share_id
    )
    return _one(connection, statement, "access rule", rule_id, field="access_id")


def network(connection: Connection, network_id: str, project_id: str) -> Row[Any]:
    """Return a share network that the project may use, kept from deletion until the commit."""
    statement = (
        select(share_networks)
        .where(
            share_networks.c.id == network_id,
            or_(share_networks.c.project_id == project_id, share_networks.c.is_public),
        )
        .with_for_update(read=True)
    )
    return _one(connection, statement, "share network", network_id, field="share_network_id")


def share_type(connection: Connection, named: str) -> Row[Any]:
    """Return a share type by its id or name."""
    statement = select(share_types).where(
        or_(share_types.c.id == named, share_types.c.name == named)
    )
    return _one(connection, statement, "share type", named, field="share_type")


def check_status(row: Row[Any], kind: str, *allowed: str, to: str) -> None:
    """Refuse a request that the object's status does not allow."""
    if row.status not in allowed:
        raise Conflict(
            f"The {kind} {row.id} is {row.status}; to {to} it must be {' or '.join(allowed)}.",
            object=f"{kind} {row.id}",
        )
