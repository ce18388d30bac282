"""Handlers of security service requests; passwords stay sealed, and cannot be opened here."""

from __future__ import annotations

import uuid
from typing import Any, Final

from sqlalchemy import Row, Select, and_, insert, or_, select, update
from sqlalchemy import delete as sql_delete

from scheduler.acceptance import lookup
from scheduler.acceptance.accept import Acceptance
from scheduler.acceptance.share_networks import changeable
from scheduler.requests.security_options import check_needs
from scheduler.requests.security_services import (
    AddSecurityService,
    CreateSecurityService,
    RemoveSecurityService,
    UpdateSecurityService,
)
from worker.db import security_services as security
from worker.db import views
from worker.db.core.engine import db_now
from worker.db.tables.main import (
    security_services,
    share_network_security_services,
    share_networks,
    share_servers,
    shares,
)
from worker.engine.accept import Completed
from worker.errors import Conflict, InvalidRequest, NotFound, ObjectKind
from worker.model import SecurityServiceType, ServerStatus, ShareStatus
from worker.sealing import Keys

_CREDENTIALS: Final = frozenset({"user", "password_key_id", "password_sealed"})
_c = security_services.c
_a = share_network_security_services.c


def create(acceptance: Acceptance) -> Completed:
    """Write a security service, with its password still sealed."""
    request: CreateSecurityService = acceptance.request
    values = request.columns()
    check_needs(request.type, values)
    row = acceptance.connection.execute(
        insert(security_services)
        .values(
            id=str(uuid.uuid4()),
            project_id=acceptance.project_id,
            type=request.type.value,
            name=request.name,
            description=request.description,
            created_at=db_now(),
            updated_at=db_now(),
            **values,
        )
        .returning(*_c)
    ).one()
    _check_key(acceptance, request)
    return Completed(("security_service", row.id), views.SECURITY_SERVICE(row))


def change(acceptance: Acceptance) -> Completed:
    """Change a security service; all but description and credentials only while it is unused.

    Share servers are built for one directory, so the fields that identify it cannot change while
    servers use it. User and password are read anew whenever a server joins or leaves the directory.
    """
    request: UpdateSecurityService = acceptance.request
    row = _held(acceptance, request.security_service_id)
    networks = acceptance.connection.execute(
        select(share_networks.c.id)
        .join(share_network_security_services, _a.share_network_id == share_networks.c.id)
        .where(_a.security_service_id == row.id)
        .order_by(share_networks.c.id)
        .with_for_update()
    ).all()
    values = request.columns()
    identity = values.keys() - _CREDENTIALS
    if values:
        check_needs(SecurityServiceType(row.type), {**row._asdict(), **values})
    if identity:
        for network in networks:
            _check_unused(
                acceptance,
                network.id,
                f"only name, description, user and password of the security service {row.id} can "
                f"be changed",
            )
        values["revision"] = row.revision + 1
    changed = acceptance.connection.execute(
        update(security_services)
        .where(_c.id == row.id)
        .values(**request.described, **values, updated_at=db_now())
        .returning(*_c)
    ).one()
    _check_key(acceptance, request)
    if identity:
        for network in networks:
            security.note_key(acceptance.connection, network.id)
    return Completed(("security_service", row.id), views.SECURITY_SERVICE(changed))


def delete(acceptance: Acceptance) -> Completed:
    """Delete a security service that is on no share network."""
    connection = acceptance.connection
    row = _held(acceptance, acceptance.request.security_service_id)
    added = select(_a.share_network_id).where(_a.security_service_id == row.id)
    users = lookup.users(connection, ("share network", added))
    if users:
        raise Conflict(
            f"The security service {row.id} is added to {users}; remove it there first.",
            object=ObjectKind.SECURITY_SERVICE.ref(row.id),
            field="security_service_id",
        )
    connection.execute(sql_delete(security_services).where(_c.id == row.id))
    return Completed(("security_service", row.id), {"id": row.id, "status": "deleted"})


def add(acceptance: Acceptance) -> Completed:
    """Add a security service to a share network, for the share servers built from now on."""
    request: AddSecurityService = acceptance.request
    connection = acceptance.connection
    row = _held(acceptance, request.security_service_id)
    network = changeable(acceptance)
    if network.project_id != row.project_id:
        raise Conflict(
            f"The share network {network.id} belongs to another project than the security service "
            f"{row.id}; create one in that project.",
            object=ObjectKind.SHARE_NETWORK.ref(network.id),
            field="share_network_id",
        )
    _check_unused(acceptance, network.id, "no security service can be added")
    held = connection.execute(
        select(_a.security_service_id).where(_a.share_network_id == network.id, _a.type == row.type)
    ).scalar_one_or_none()
    if held is not None:
        raise Conflict(
            f"The share network {network.id} has a security service of type {row.type} already "
            f"({held}); remove that one first.",
            object=ObjectKind.SHARE_NETWORK.ref(network.id),
            field="security_service_id",
        )
    connection.execute(
        insert(share_network_security_services).values(
            share_network_id=network.id, type=row.type, security_service_id=row.id
        )
    )
    return _finish(acceptance, network.id)


def remove(acceptance: Acceptance) -> Completed:
    """Remove a security service from a share network, for the share servers built from now on."""
    request: RemoveSecurityService = acceptance.request
    network = changeable(acceptance)
    added = and_(
        _a.share_network_id == network.id, _a.security_service_id == request.security_service_id
    )
    if acceptance.connection.execute(select(_a.type).where(added)).first() is None:
        raise NotFound(
            f"There is no security service {request.security_service_id} on the share network "
            f"{network.id}.",
            object=ObjectKind.SECURITY_SERVICE.ref(request.security_service_id),
            field="security_service_id",
        )
    _check_unused(acceptance, network.id, "no security service can be removed")
    acceptance.connection.execute(sql_delete(share_network_security_services).where(added))
    return _finish(acceptance, network.id)


def _held(acceptance: Acceptance, service_id: str) -> Row[Any]:
    return lookup.security_service(acceptance.connection, service_id, acceptance.project_id)


def _finish(acceptance: Acceptance, network_id: str) -> Completed:
    row = security.note_key(acceptance.connection, network_id)
    return Completed(("share_network", network_id), views.SHARE_NETWORK(row))


def _check_key(
    acceptance: Acceptance, request: CreateSecurityService | UpdateSecurityService
) -> None:
    """Refuse a password that no worker could open.

    Called after the row is written: a process that retires a key first refuses it, then waits for
    transactions that write such rows.
    """
    password = request.password
    if password is not None and not Keys(acceptance.config.secrets.directory).has(password.key_id):
        raise InvalidRequest(
            "The password is sealed with a key that is not, or no longer, this service's; ask "
            "show_sealing_key for the present one and seal it with that.",
            field="password",
        )


def _check_unused(acceptance: Acceptance, network_id: str, then: str) -> None:
    """Refuse a change while shares of the network have share servers, or may get them.

    A share server without shares does not matter: the next share gets another server.
    """
    users = lookup.users(
        acceptance.connection,
        ("share", _shares(network_id)),
        ("share server", _servers(network_id)),
    )
    if users:
        raise Conflict(
            f"The share network {network_id} is in use by {users}: share servers keep "
            f"the security services that they were built with, so {then} until these are deleted.",
            object=ObjectKind.SHARE_NETWORK.ref(network_id),
            field="share_network_id",
        )


def _shares(network_id: str) -> Select[tuple[str]]:
    coming = (ShareStatus.CREATING.value, ShareStatus.DELETING.value)
    return select(shares.c.id).where(
        shares.c.share_network_id == network_id,
        or_(shares.c.share_server_id.is_not(None), shares.c.status.in_(coming)),
    )


def _servers(network_id: str) -> Select[tuple[str]]:
    building = (ServerStatus.NEW.value, ServerStatus.BUILDING.value)
    return select(share_servers.c.id).where(
        share_servers.c.share_network_id == network_id,
        or_(share_servers.c.shares > 0, share_servers.c.status.in_(building)),
    )
