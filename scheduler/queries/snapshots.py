"""Queries of snapshots."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Connection,
)

from scheduler.queries.base import list_rows, show
from scheduler.requests.snapshots import ListSnapshots, SnapshotOnly
from worker.config import Config
from worker.db import views
from worker.errors import ObjectKind


def show_snapshot(connection: Connection, request: SnapshotOnly, _config: Config) -> dict[str, Any]:
    """Return one snapshot."""
    return show(
        connection, views.SNAPSHOT, ObjectKind.SNAPSHOT, request.context, request.snapshot_id
    )


def list_snapshots(
    connection: Connection, request: ListSnapshots, _config: Config
) -> dict[str, Any]:
    """Return a page of snapshots."""
    filters = request.model_dump(mode="json", include={"name", "status", "share_id"})
    return list_rows(connection, views.SNAPSHOT, "snapshots", request, filters)
