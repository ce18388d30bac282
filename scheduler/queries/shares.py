"""Queries of shares."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Connection,
    or_,
    select,
)

from scheduler.queries.base import list_rows, show
from scheduler.requests.shares import ListShares, ShareOnly
from worker.config import Config
from worker.db import views
from worker.db.tables.main import (
    share_types,
    shares,
)
from worker.errors import ObjectKind


def show_share(connection: Connection, request: ShareOnly, _config: Config) -> dict[str, Any]:
    """Return one share."""
    return show(connection, views.SHARE, ObjectKind.SHARE, request.context, request.share_id)


def list_shares(connection: Connection, request: ListShares, _config: Config) -> dict[str, Any]:
    """Return a page of shares."""
    conditions = []
    if request.share_type is not None:
        t = share_types.c
        named = select(t.id).where(or_(t.id == request.share_type, t.name == request.share_type))
        conditions.append(shares.c.share_type_id.in_(named))
    filters = request.model_dump(
        mode="json",
        include={
            *("name", "status", "share_network_id", "share_server_id", "snapshot_id", "backend")
        },
    )
    return list_rows(connection, views.SHARE, "shares", request, filters, *conditions)
