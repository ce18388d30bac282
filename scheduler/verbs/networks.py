"""Accepting share network requests: rows only, nothing outside."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import Row, insert, select
from sqlalchemy import delete as sql_delete

from scheduler.dispatch import Acceptance
from scheduler.requests import CreateShareNetwork
from worker.addressing import parse_pool
from worker.db import addresses
from worker.db.documents import shown
from worker.db.engine import db_now
from worker.db.tables import share_networks, share_servers, shares
from worker.errors import Conflict, NotFound

_NAMED_USERS = 5


def create(acceptance: Acceptance) -> None:
    """Check the options against each other and write the share network."""
    request: CreateShareNetwork = acceptance.request
    if request.flat_network_ip_pool is not None:
        parse_pool(
            request.flat_network_ip_pool,
            subnet=request.flat_network_subnet,
            gateway=request.flat_network_gateway,
        )
    pool = request.flat_network_ip_pool
    row = acceptance.connection.execute(
        insert(share_networks)
        .values(
            id=str(uuid.uuid4()),
            project_id=acceptance.project_id,
            name=request.name,
            description=request.description,
            metadata=request.metadata,
            kind=request.kind.value,
            flat_network_ip_pool=list(pool) if pool is not None else None,
            flat_network_subnet=request.flat_network_subnet,
            flat_network_gateway=request.flat_network_gateway,
            created_at=db_now(),
            updated_at=db_now(),
        )
        .returning(*share_networks.c)
    ).one()
    acceptance.finish(("share_network", row.id), shown(row))


def delete(acceptance: Acceptance) -> None:
    """Remove a share network that nothing refers to."""
    connection = acceptance.connection
    network_id = acceptance.request.share_network_id
    row = connection.execute(
        select(share_networks)
        .where(
            share_networks.c.id == network_id,
            share_networks.c.project_id == acceptance.project_id,
        )
        .with_for_update()
    ).first()
    if row is None:
        raise NotFound(
            f"There is no share network {network_id}.",
            object=f"share network {network_id}",
            field="share_network_id",
        )
    _check_unused(acceptance, row)
    connection.execute(sql_delete(share_networks).where(share_networks.c.id == row.id))
    addresses.forget(connection, f"share_network:{row.id}")
    acceptance.finish(("share_network", row.id), {"id": row.id, "status": "deleted"})


def _check_unused(acceptance: Acceptance, row: Row[Any]) -> None:
    users = [
        f"{kind} {user}"
        for kind, table in (("share", shares), ("share server", share_servers))
        for (user,) in acceptance.connection.execute(
            select(table.c.id).where(table.c.share_network_id == row.id).limit(_NAMED_USERS)
        )
    ][:_NAMED_USERS]
    if users:
        raise Conflict(
            f"The share network {row.id} is in use by {', '.join(users)}; delete these first.",
            object=f"share network {row.id}",
        )
