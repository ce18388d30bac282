"""Reading share servers."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Connection,
)

from scheduler.queries.base import list_rows, show
from scheduler.requests.share_servers import ListShareServers, ShareServerOnly
from worker.config import Config
from worker.db.tables.main import (
    share_servers,
)
from worker.errors import ObjectKind


def show_share_server(
    connection: Connection, request: ShareServerOnly, _config: Config
) -> dict[str, Any]:
    """Return one share server."""
    return show(
        connection, share_servers, ObjectKind.SHARE_SERVER, request.context, request.share_server_id
    )


def list_share_servers(
    connection: Connection, request: ListShareServers, _config: Config
) -> dict[str, Any]:
    """Return a page of share servers."""
    filters = request.model_dump(include={"status", "share_network_id", "backend"})
    return list_rows(connection, share_servers, "share_servers", request, filters)
