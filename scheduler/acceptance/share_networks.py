"""Handlers of share network requests: they write rows and use no external system."""

from __future__ import annotations

import uuid
from typing import Any, Final

from sqlalchemy import Row, Select, Table, insert, not_, or_, select, true, update
from sqlalchemy import delete as sql_delete

from scheduler.acceptance import lookup, quotas
from scheduler.acceptance.accept import Acceptance
from scheduler.requests.share_networks import CreateShareNetwork, UpdateShareNetwork
from worker.db import audits, views
from worker.db.core.engine import db_now
from worker.db.networks import addresses
from worker.db.tables.main import (
    operations,
    share_network_security_services,
    share_networks,
    share_servers,
    shares,
)
from worker.engine.accept import Completed
from worker.errors import Conflict, Forbidden, NotFound, ObjectKind
from worker.messaging.queues import ADMIN_REQUESTS
from worker.model import OperationState, OwnerKind, QuotaResource

_LIVE: Final = [state.value for state in OperationState if not state.has_ended]
_n = share_networks.c
_added: Final = share_network_security_services


def create(acceptance: Acceptance) -> Completed:
    """Write a share network; the payload's validation has checked its options."""
    request: CreateShareNetwork = acceptance.request
    if request.is_public and not acceptance.is_admin:
        raise Forbidden(
            f"Only an administrator creates public share networks, on the queue {ADMIN_REQUESTS}; "
            f"leave is_public out.",
            field="is_public",
        )
    quotas.check(acceptance, quotas.hold(acceptance), {QuotaResource.SHARE_NETWORKS: 1})
    row = acceptance.connection.execute(
        insert(share_networks)
        .values(
            id=str(uuid.uuid4()),
            project_id=acceptance.project_id,
            name=request.name,
            description=request.description,
            metadata=request.metadata,
            is_public=request.is_public,
            created_at=db_now(),
            updated_at=db_now(),
            **request.columns(),
        )
        .returning(*_n)
    ).one()
    return Completed(("share_network", row.id), views.SHARE_NETWORK(row))


def change(acceptance: Acceptance) -> Completed:
    """Change a share network's description; change the options of an unused one."""
    request: UpdateShareNetwork = acceptance.request
    row = changeable(acceptance)
    values = request.described
    if request.options_given:
        _check_unused(acceptance, row, then="its options stay as they are until these are deleted")
        values.update(request.columns())
    return _finish(acceptance, row, **values)


def delete(acceptance: Acceptance) -> Completed:
    """Delete a share network that nothing uses."""
    connection = acceptance.connection
    row = changeable(acceptance)
    _check_not_default(row, to="deleted")
    idle = acceptance.config.engine.unused_share_server_cleanup_interval
    _check_unused(
        acceptance,
        row,
        then="delete its shares first; share servers are deleted automatically, "
        f"{idle:g} s after their last share",
    )
    audits.add_tombstone(connection, OwnerKind.SHARE_NETWORK, row.id)
    # Only rows of failed builds are left of its share servers; nothing exists on the backends.
    connection.execute(sql_delete(share_servers).where(share_servers.c.share_network_id == row.id))
    connection.execute(sql_delete(_added).where(_added.c.share_network_id == row.id))
    connection.execute(sql_delete(share_networks).where(_n.id == row.id))
    addresses.forget(connection, f"share_network:{row.id}")
    return Completed(("share_network", row.id), {"id": row.id, "status": "deleted"})


def publish(acceptance: Acceptance) -> Completed:
    """Make a share network public: every project may see and use it."""
    return _finish(acceptance, changeable(acceptance), is_public=True)


def unpublish(acceptance: Acceptance) -> Completed:
    """Make a share network private to its project, unless another project uses it."""
    row = changeable(acceptance)
    _check_not_default(row, to="made private")
    _check_unused(
        acceptance,
        row,
        then="it stays public until these, of other projects, are deleted",
        but_for=row.project_id,
    )
    return _finish(acceptance, row, is_public=False)


def set_default(acceptance: Acceptance) -> Completed:
    """Make a public share network the default, for requests that name none."""
    row = changeable(acceptance)
    if not row.is_public:
        raise Conflict(
            f"The share network {row.id} is not public, so not every project could use it as "
            f"the default; publish it first.",
            object=ObjectKind.SHARE_NETWORK.ref(row.id),
            field="share_network_id",
        )
    acceptance.connection.execute(
        update(share_networks)
        .where(_n.is_default, _n.id != row.id)
        .values(is_default=False, updated_at=db_now())
    )
    return _finish(acceptance, row, is_default=True)


def unset_default(acceptance: Acceptance) -> Completed:
    """Remove the default share network; requests that name none then have none."""
    row = changeable(acceptance)
    if not row.is_default:
        raise Conflict(
            f"The share network {row.id} is not the default.",
            object=ObjectKind.SHARE_NETWORK.ref(row.id),
            field="share_network_id",
        )
    return _finish(acceptance, row, is_default=False)


def changeable(acceptance: Acceptance) -> Row[Any]:
    """Return the requested share network, locked until the commit.

    Raises :class:`~worker.errors.NotFound`, and :class:`~worker.errors.Forbidden` for a public one
    unless an administrator asks.
    """
    network_id = acceptance.request.share_network_id
    seen = (
        true() if acceptance.is_admin else or_(_n.project_id == acceptance.project_id, _n.is_public)
    )
    row = acceptance.connection.execute(
        select(share_networks).where(_n.id == network_id, seen).with_for_update()
    ).first()
    if row is None:
        raise NotFound(
            f"There is no share network {network_id}.",
            object=ObjectKind.SHARE_NETWORK.ref(network_id),
            field="share_network_id",
        )
    if row.is_public and not acceptance.is_admin:
        raise Forbidden(
            f"The share network {row.id} is public: only an administrator changes it, on the "
            f"queue {ADMIN_REQUESTS}.",
            object=ObjectKind.SHARE_NETWORK.ref(row.id),
            field="share_network_id",
        )
    return row


def _finish(acceptance: Acceptance, row: Row[Any], **values: Any) -> Completed:
    changed = acceptance.connection.execute(
        update(share_networks)
        .where(_n.id == row.id)
        .values(**values, updated_at=db_now())
        .returning(*_n)
    ).one()
    return Completed(("share_network", row.id), views.SHARE_NETWORK(changed))


def _check_not_default(row: Row[Any], *, to: str) -> None:
    if row.is_default:
        raise Conflict(
            f"The share network {row.id} is the default and cannot be {to}; name another one the "
            f"default first, or none.",
            object=ObjectKind.SHARE_NETWORK.ref(row.id),
            field="share_network_id",
        )


def _check_unused(
    acceptance: Acceptance, row: Row[Any], *, then: str, but_for: str | None = None
) -> None:
    """Refuse a change while any project, except ``but_for``, uses the network."""
    connection = acceptance.connection
    users = lookup.users(
        connection, ("share", _using(shares, row, but_for)), ("operation", _live(row, but_for))
    )
    # Share servers go with their shares: they are named only when they are all that is left.
    users = users or lookup.users(connection, ("share server", _using(share_servers, row, but_for)))
    if users:
        raise Conflict(
            f"The share network {row.id} is in use by {users}; {then}.",
            object=ObjectKind.SHARE_NETWORK.ref(row.id),
            field="share_network_id",
        )


def _using(table: Table, row: Row[Any], but_for: str | None) -> Select[tuple[str]]:
    found = select(table.c.id).where(table.c.share_network_id == row.id)
    if table is share_servers:
        found = found.where(not_(audits.is_undone()))
    return found if but_for is None else found.where(table.c.project_id != but_for)


def _live(row: Row[Any], but_for: str | None) -> Select[tuple[str]]:
    """Select the operations that have not ended, on shares and share servers of the network."""
    objects = (_using(table, row, but_for) for table in (shares, share_servers))
    return (
        select(operations.c.id)
        .where(
            operations.c.state.in_(_LIVE),
            or_(*(operations.c.resource_id.in_(found) for found in objects)),
        )
        .order_by(operations.c.seq)
    )
