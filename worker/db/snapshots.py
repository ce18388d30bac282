"""Snapshots: conversion of rows to values, and changes of status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    Connection,
    Row,
    bindparam,
    delete,
    func,
    select,
    update,
)

from worker.db import audits
from worker.db.core.engine import db_now
from worker.db.core.prepared import Prepared
from worker.db.shares import _SNAPSHOT
from worker.db.statuses import move, row_of
from worker.db.tables.main import (
    snapshots,
)
from worker.errors import ObjectKind
from worker.model import (
    OwnerKind,
    Snapshot,
    SnapshotStatus,
)


def snapshot_of(row: Row[Any]) -> Snapshot:
    """Return the value of a snapshot's row, as drivers see it."""
    return Snapshot(row.id, row.share_id, row.project_id, row.size)


def snapshot_row(connection: Connection, snapshot_id: str) -> Row[Any]:
    """Return a snapshot's row for a step; raise Fatal when the snapshot no longer exists."""
    return row_of(connection, _SNAPSHOT, snapshot_id, ObjectKind.SNAPSHOT)


def set_snapshot(
    connection: Connection, snapshot_id: str, status: SnapshotStatus, **values: Any
) -> Row[Any]:
    """Change a snapshot's status and other columns; return its row.

    Raises when its transitions do not allow the status.
    """
    return move(connection, snapshots, snapshot_id, status, values)


def has_snapshot(connection: Connection, snapshot_id: str) -> bool:
    """Tell whether a snapshot exists."""
    found = connection.execute(select(snapshots.c.id).where(snapshots.c.id == snapshot_id))
    return found.first() is not None


def snapshot_failed(connection: Connection, snapshot_id: str, error: Mapping[str, str]) -> None:
    """Put a snapshot that could not be created in error, unless its delete was accepted."""
    connection.execute(
        update(snapshots)
        .where(snapshots.c.id == snapshot_id, snapshots.c.status == SnapshotStatus.CREATING.value)
        .values(status=SnapshotStatus.ERROR.value, error=dict(error), updated_at=db_now())
    )


def remove_snapshot(connection: Connection, snapshot_id: str) -> None:
    """Delete a snapshot's row, after the snapshot itself is deleted."""
    audits.add_tombstone(connection, OwnerKind.SNAPSHOT, snapshot_id)
    connection.execute(delete(snapshots).where(snapshots.c.id == snapshot_id))


_COUNT_SNAPSHOTS = Prepared(
    select(func.count().label("number"))
    .select_from(snapshots)
    .where(snapshots.c.share_id == bindparam("share"))
)


def snapshots_of(connection: Connection, share_id: str) -> int:
    """Return the number of a share's snapshots."""
    [row] = _COUNT_SNAPSHOTS.all(connection, share=share_id)
    return int(row.number)
