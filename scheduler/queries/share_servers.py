"""Queries of share servers."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Connection,
)

from scheduler.queries.base import is_administrator, list_rows, show
from scheduler.requests.base import Context
from scheduler.requests.share_servers import ListShareServers, ShareServerOnly
from worker.config import Config
from worker.db import views
from worker.db.views import View
from worker.errors import ObjectKind


def show_share_server(
    connection: Connection, request: ShareServerOnly, _config: Config
) -> dict[str, Any]:
    """Return one share server."""
    view = _view(request.context)
    return show(connection, view, ObjectKind.SHARE_SERVER, request.context, request.share_server_id)


def list_share_servers(
    connection: Connection, request: ListShareServers, _config: Config
) -> dict[str, Any]:
    """Return a page of share servers."""
    filters = request.model_dump(mode="json", include={"status", "share_network_id", "backend"})
    return list_rows(connection, _view(request.context), "share_servers", request, filters)


def _view(context: Context) -> View:
    """Return the columns that the caller may see: management data is for administrators only."""
    if is_administrator(context):
        return views.SHARE_SERVER_FOR_ADMINISTRATORS
    return views.SHARE_SERVER
