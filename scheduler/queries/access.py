"""Queries of access rules."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Connection,
)

from scheduler.queries.base import all_projects, list_rows, show
from scheduler.requests.access import ListAccess
from worker.config import Config
from worker.db import views
from worker.errors import ObjectKind


def list_access(connection: Connection, request: ListAccess, _config: Config) -> dict[str, Any]:
    """Return a page of a share's access rules."""
    if not all_projects(request):
        # Raises NotFound unless the project may see the share.
        show(connection, views.SHARE, ObjectKind.SHARE, request.context, request.share_id)
    filters = request.model_dump(mode="json", include={"share_id", "state"})
    return list_rows(connection, views.ACCESS_RULE, "access_rules", request, filters)
