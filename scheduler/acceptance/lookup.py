"""Lookups of the objects that a request names; another project's object is "not found"."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, Table, bindparam, or_, select

from scheduler.placement.filters import MODE_SPEC
from scheduler.placement.share_network import NETWORK_SPEC, Named, Visibility, resolve
from worker.db.core.prepared import Prepared
from worker.db.tables.main import (
    access_rules,
    security_services,
    share_networks,
    share_servers,
    share_types,
    shares,
    snapshots,
)
from worker.errors import Conflict, NotFound, ObjectKind
from worker.model import DriverMode

NAMED_USERS: Final = 5
"""Number of using objects that an error names; the others are only counted."""


def _one(
    connection: Connection, statement: Select[Any], kind: ObjectKind, name: str, *, field: str
) -> Row[Any]:
    return _found(connection.execute(statement).first(), kind, name, field=field)


def _found(row: Row[Any] | None, kind: ObjectKind, name: str, *, field: str) -> Row[Any]:
    if row is None:
        raise NotFound(f"There is no {kind.words} {name}.", object=kind.ref(name), field=field)
    return row


def _owned(table: Table) -> Select[Any]:
    return select(table).where(
        table.c.id == bindparam("object_id"), table.c.project_id == bindparam("project")
    )


_SHARE = Prepared(_owned(shares).with_for_update())
_SNAPSHOT = Prepared(_owned(snapshots).with_for_update())
_SECURITY_SERVICE = Prepared(_owned(security_services).with_for_update())


def share(connection: Connection, share_id: str, project_id: str) -> Row[Any]:
    """Return a share of the project, locked until the commit, or raise NotFound."""
    row = _SHARE.first(connection, object_id=share_id, project=project_id)
    return _found(row, ObjectKind.SHARE, share_id, field="share_id")


def snapshot(connection: Connection, snapshot_id: str, project_id: str) -> Row[Any]:
    """Return a snapshot of the project, locked until the commit, or raise NotFound."""
    row = _SNAPSHOT.first(connection, object_id=snapshot_id, project=project_id)
    return _found(row, ObjectKind.SNAPSHOT, snapshot_id, field="snapshot_id")


def share_server(connection: Connection, server_id: str) -> Row[Any]:
    """Return a share server of any project, locked until the commit, for administrators."""
    statement = select(share_servers).where(share_servers.c.id == server_id).with_for_update()
    return _one(connection, statement, ObjectKind.SHARE_SERVER, server_id, field="share_server_id")


def security_service(connection: Connection, service_id: str, project_id: str) -> Row[Any]:
    """Return a security service of the project, locked until the commit."""
    row = _SECURITY_SERVICE.first(connection, object_id=service_id, project=project_id)
    return _found(row, ObjectKind.SECURITY_SERVICE, service_id, field="security_service_id")


def rule(connection: Connection, rule_id: str, share_id: str) -> Row[Any]:
    """Return an access rule of a share; raise NotFound if there is none."""
    statement = select(access_rules).where(
        access_rules.c.id == rule_id, access_rules.c.share_id == share_id
    )
    return _one(connection, statement, ObjectKind.ACCESS_RULE, rule_id, field="access_id")


_HELD_NETWORK = Prepared(
    select(share_networks)
    .where(share_networks.c.id == bindparam("object_id"))
    .with_for_update(read=True)
)


def share_network(
    connection: Connection,
    project_id: str,
    *,
    named: str | None,
    configured: str | None = None,
    extra_specs: Mapping[str, str] = MappingProxyType({}),
) -> Row[Any] | None:
    """Return the share network for a request, locked against deletion until the commit.

    ``named`` is the id in the request, ``configured`` the configuration's default. Raises as
    :func:`scheduler.placement.share_network.resolve`.
    """
    if named is not None:  # it decides alone
        row = _HELD_NETWORK.first(connection, object_id=named)
        resolve(request=Named(named, _visibility(row, project_id)))
        return row
    of_type = extra_specs.get(NETWORK_SPEC)
    n = share_networks.c
    mentioned = [name for name in (of_type, configured) if name is not None]
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
            share_type=_named(of_type, seen, project_id),
            configuration=_named(configured, seen, project_id),
            default=_named(
                next((row.id for row in seen.values() if row.is_default), None), seen, project_id
            ),
            asks_single_svm=extra_specs.get(MODE_SPEC) == DriverMode.SINGLE_SVM,
        )
        if chosen is None:
            return None
        held = _HELD_NETWORK.first(connection, object_id=chosen.id)
        # An administrator may have changed or deleted it since it was first read: read it again.
        if _visibility(held, project_id) is chosen.visibility:
            return held


def _named(network_id: str | None, seen: Mapping[str, Any], project_id: str) -> Named | None:
    if network_id is None:
        return None
    return Named(network_id, _visibility(seen.get(network_id), project_id))


def _visibility(row: Row[Any] | None, project_id: str) -> Visibility:
    if row is None:
        return Visibility.MISSING
    if row.is_public:
        return Visibility.PUBLIC
    return Visibility.OWN if row.project_id == project_id else Visibility.FOREIGN


def share_type(connection: Connection, named: str) -> Row[Any]:
    """Return a share type by its id or name; raise NotFound if there is none."""
    statement = select(share_types).where(
        or_(share_types.c.id == named, share_types.c.name == named)
    )
    return _one(connection, statement, ObjectKind.SHARE_TYPE, named, field="share_type")


def users(
    connection: Connection, *using: tuple[str, Select[tuple[str]]], named: int = NAMED_USERS
) -> str:
    """Describe the objects that ``using`` selects, for an error: the first ids, then a number.

    ``using`` are pairs of a kind's name and a selection of ids. Returns "" when there are none.
    """
    first: list[str] = []
    count = 0
    for kind, statement in using:
        found = connection.execute(statement).scalars().all()
        count += len(found)
        first += [f"{kind} {user}" for user in found[: named - len(first)]]
    more = f" and {count - named} more" if count > named else ""
    return ", ".join(first) + more


def check_status(row: Row[Any], kind: ObjectKind, *allowed: str, to: str) -> None:
    """Raise Conflict unless the object's status is one of ``allowed``."""
    if row.status not in allowed:
        raise Conflict(
            f"The {kind.words} {row.id} is {row.status}; to {to} it must be "
            f"{' or '.join(allowed)}.",
            object=kind.ref(row.id),
        )
