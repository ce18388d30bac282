"""Handlers of share type requests."""

from __future__ import annotations

import uuid

from sqlalchemy import delete, func, insert, select

from scheduler.acceptance import lookup
from scheduler.acceptance.accept import Acceptance
from scheduler.placement.filters import MODE_SPEC
from scheduler.placement.share_network import NETWORK_SPEC
from scheduler.requests.share_types import CreateShareType
from worker.db import quotas, views
from worker.db.core.engine import db_now
from worker.db.tables.main import share_networks, share_types, shares
from worker.engine.accept import Completed
from worker.errors import Conflict, InvalidRequest, NotFound, ObjectKind
from worker.model import DriverMode


def create_share_type(acceptance: Acceptance) -> Completed:
    """Write a share type under a name that is not taken."""
    request: CreateShareType = acceptance.request
    connection = acceptance.connection
    _check_network(acceptance, request)
    taken = connection.execute(select(share_types.c.id).where(share_types.c.name == request.name))
    if taken.first() is not None:
        raise Conflict(
            f"There is a share type {request.name} already.",
            object=ObjectKind.SHARE_TYPE.ref(request.name),
            field="name",
        )
    row = connection.execute(
        insert(share_types)
        .values(
            id=str(uuid.uuid4()),
            project_id=acceptance.project_id,
            name=request.name,
            description=request.description,
            extra_specs=request.extra_specs,
            created_at=db_now(),
            updated_at=db_now(),
        )
        .returning(*share_types.c)
    ).one()
    return Completed(("share_type", row.id), views.SHARE_TYPE(row))


def _check_network(acceptance: Acceptance, request: CreateShareType) -> None:
    """Refuse extra specs with a share network that shares of the type could never use."""
    network_id = request.extra_specs.get(NETWORK_SPEC)
    if network_id is None:
        return
    if request.extra_specs.get(MODE_SPEC) == DriverMode.SINGLE_SVM:
        raise InvalidRequest(
            f"{MODE_SPEC} = {DriverMode.SINGLE_SVM} ignores share networks; leave {NETWORK_SPEC} "
            f"or {MODE_SPEC} out of the extra specs.",
            field="extra_specs",
        )
    n = share_networks.c
    known = select(n.id).where(n.id == network_id)
    if acceptance.connection.execute(known).first() is None:
        raise NotFound(
            f"The extra spec {NETWORK_SPEC} names share network {network_id}, and there is none.",
            object=ObjectKind.SHARE_NETWORK.ref(network_id),
            field="extra_specs",
        )


def delete_share_type(acceptance: Acceptance) -> Completed:
    """Delete a share type that no share has."""
    connection = acceptance.connection
    row = lookup.share_type(connection, acceptance.request.share_type)
    users = connection.execute(
        select(func.count()).select_from(shares).where(shares.c.share_type_id == row.id)
    ).scalar_one()
    if users:
        raise Conflict(
            f"{users} share{'s have' if users > 1 else ' has'} the type {row.name}.",
            object=ObjectKind.SHARE_TYPE.ref(row.id),
        )
    connection.execute(delete(share_types).where(share_types.c.id == row.id))
    quotas.forget_share_type(connection, row.id)
    return Completed(("share_type", row.id), {"id": row.id, "status": "deleted"})
