"""Queries of share types."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Connection,
    or_,
    select,
)

from scheduler.queries.base import missing, page
from scheduler.requests.share_types import ListShareTypes, ShareTypeOnly
from worker.config import Config
from worker.db import views
from worker.db.tables.main import (
    share_types,
)
from worker.errors import ObjectKind


def show_share_type(
    connection: Connection, request: ShareTypeOnly, _config: Config
) -> dict[str, Any]:
    """Return one share type by id or name; every project sees all of them."""
    t = share_types.c
    row = connection.execute(
        select(share_types)
        .where(or_(t.id == request.share_type, t.name == request.share_type))
        # Match by id first, in case one type's name is another's id.
        .order_by(t.id != request.share_type)
        .limit(1)
    ).first()
    if row is None:
        raise missing(ObjectKind.SHARE_TYPE, request.share_type, "share_type")
    return views.SHARE_TYPE(row)


def list_share_types(
    connection: Connection, request: ListShareTypes, _config: Config
) -> dict[str, Any]:
    """Return a page of share types; every project sees all of them."""
    t = share_types.c
    statement = select(share_types)
    if request.name is not None:
        statement = statement.where(t.name == request.name)
    rows, marker = page(
        connection,
        statement,
        order=(t.created_at, t.id),
        marker_id=t.id,
        request=request,
        visible=None,
    )
    return {"share_types": [views.SHARE_TYPE(row) for row in rows], "next_marker": marker}
