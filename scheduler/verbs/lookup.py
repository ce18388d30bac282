"""Finding what a request names; another project's object is "not found"."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, Row, Select, Table, or_, select

from scheduler.filters import MODE_SPEC
from scheduler.resolve import NETWORK_SPEC, Named, Standing, resolve
from worker.db.tables import (
    access_rules,
    security_services,
    share_networks,
    share_types,
    shares,
    snapshots,
)
from worker.errors import Conflict, NotFound
from worker.model import DriverMode


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


def security_service(connection: Connection, service_id: str, project_id: str) -> Row[Any]:
    """Return a security service of the project, held for the rest of the transaction."""
    statement = _owned(security_services, service_id, project_id).with_for_update()
    return _one(connection, statement, "security service", service_id, field="security_service_id")


def rule(connection: Connection, rule_id: str, share_id: str) -> Row[Any]:
    """Return an access rule of a share."""
    statement = select(access_rules).where(
        access_rules.c.id == rule_id, access_rules.c.share_id == share_id
    )
    return _one(connection, statement, "access rule", rule_id, field="access_id")


def share_network(
    connection: Connection,
    project_id: str,
    *,
    named: str | None,
    configured: str | None = None,
    extra_specs: Mapping[str, str] = MappingProxyType({}),
) -> Row[Any] | None:
    """Return the share network that a request comes to, kept from deletion until the commit.

    Raises as :func:`scheduler.resolve.resolve`.
    """
    of_type = extra_specs.get(NETWORK_SPEC)
    n = share_networks.c
    mentioned = [name for name in (named, of_type, configured) if name is not None]
    while True:
        seen: dict[str, Any] = {
            row.id: row
            for row in connection.execute(
                select(n.id, n.project_id, n.is_public, n.is_default).where(
                    or_(n.id.in_(mentioned), n.is_default)
                )
            )
        }
        chosen = resolve(
            request=_named(named, seen, project_id),
            share_type=_named(of_type, seen, project_id),
            configuration=_named(configured, seen, project_id),
            default=_named(
                next((row.id for row in seen.values() if row.is_default), None), seen, project_id
            ),
            asks_single_svm=extra_specs.get(MODE_SPEC) == DriverMode.SINGLE_SVM,
        )
        if chosen is None:
            return None
        held = connection.execute(
            select(share_networks).where(n.id == chosen.id).with_for_update(read=True)
        ).first()
        # An administrator may have changed or removed it since the first look: look again.
        if _standing(held, project_id) is chosen.standing:
            return held


def _named(network_id: str | None, seen: Mapping[str, Any], project_id: str) -> Named | None:
    if network_id is None:
        return None
    return Named(network_id, _standing(seen.get(network_id), project_id))


def _standing(row: Row[Any] | None, project_id: str) -> Standing:
    if row is None:
        return Standing.MISSING
    if row.is_public:
        return Standing.PUBLIC
    return Standing.OWN if row.project_id == project_id else Standing.FOREIGN


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
