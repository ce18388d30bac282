"""Create and delete snapshots. Their operations are queued on the share, one at a time."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row

from worker.db import shares, snapshots, views
from worker.engine.job import Job, StepTransaction
from worker.engine.saga import Action, OnCommit
from worker.errors import StepError
from worker.model import ShareServer, SnapshotStatus
from worker.tasks.shares import share_and_server


def _objects(connection: Connection, job: Job) -> tuple[Row[Any], Row[Any], ShareServer | None]:
    snapshot = snapshots.snapshot_row(connection, job.operation.payload["snapshot_id"])
    share, server = share_and_server(job, connection, snapshot.share_id)
    return snapshot, share, server


def _create_snapshot(job: Job) -> OnCommit:
    with job.reading() as connection:
        row, share, server = _objects(connection, job)
    job.manager.create_snapshot(
        job.context, snapshots.snapshot_of(row), shares.share_of(share), server
    )

    def commit(tx: StepTransaction) -> None:
        created = snapshots.set_snapshot(
            tx.connection, row.id, SnapshotStatus.AVAILABLE, size=share.size
        )
        tx.result = views.SNAPSHOT(created)

    return commit


def _delete_snapshot(job: Job) -> OnCommit | None:
    with job.reading() as connection:
        if not snapshots.has_snapshot(connection, job.operation.payload["snapshot_id"]):
            return _answer_deleted  # a retry, and another delete has succeeded meanwhile
        row, share, server = _objects(connection, job)
    job.manager.delete_snapshot(
        job.context, snapshots.snapshot_of(row), shares.share_of(share), server
    )
    if job.operation.undoing:
        return None

    def commit(tx: StepTransaction) -> None:
        snapshots.remove_snapshot(tx.connection, row.id)
        tx.retry_failed("share", row.share_id)
        _answer_deleted(tx)

    return commit


def _answer_deleted(tx: StepTransaction) -> None:
    if not tx.operation.undoing:
        tx.result = {"id": tx.operation.payload["snapshot_id"], "status": "deleted"}


def create_failed(tx: StepTransaction, error: dict[str, str], undone: bool) -> None:  # noqa: ARG001, FBT001 - a hook of the engine
    """Mark the snapshot as failed after a create."""
    snapshot_id = tx.operation.payload["snapshot_id"]
    snapshots.snapshot_failed(tx.connection, snapshot_id, error)


def snapshot_not_deleted(job: Job, error: StepError) -> OnCommit:
    """Mark the snapshot ``error_deleting``: its deletion has been failing for too long."""

    def commit(tx: StepTransaction) -> None:
        snapshots.set_snapshot(
            tx.connection,
            job.operation.payload["snapshot_id"],
            SnapshotStatus.ERROR_DELETING,
            error=error.to_json(),
        )

    return commit


create_snapshot = Action("create_snapshot", _create_snapshot, timeout=300)
delete_snapshot = Action("delete_snapshot", _delete_snapshot, timeout=300)
