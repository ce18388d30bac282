"""Handlers of snapshot requests; their operations are queued on the share."""

from __future__ import annotations

import uuid

from sqlalchemy import func, insert, select

from scheduler.acceptance import lookup, quotas
from scheduler.acceptance.accept import Acceptance
from scheduler.requests.snapshots import CreateSnapshot
from worker.db import snapshots
from worker.db.core.engine import db_now
from worker.db.tables import main as tables
from worker.db.tables.main import shares
from worker.engine.accept import Begin
from worker.errors import Conflict, ObjectKind
from worker.model import QuotaResource, ShareStatus, SnapshotStatus


def create(acceptance: Acceptance) -> Begin:
    """Write a snapshot, and begin (or queue) its creation."""
    request: CreateSnapshot = acceptance.request
    connection = acceptance.connection
    limits = quotas.hold(acceptance)
    share = lookup.share(connection, request.share_id, acceptance.project_id)
    lookup.check_status(share, ObjectKind.SHARE, "available", "extending", to="take a snapshot of")
    quotas.check(
        acceptance,
        limits,
        {QuotaResource.SNAPSHOTS: 1, QuotaResource.SNAPSHOT_GIGABYTES: share.size},
        share_type_id=share.share_type_id,
        field="share_id",
    )
    snapshot_id = str(uuid.uuid4())
    connection.execute(
        insert(tables.snapshots).values(
            id=snapshot_id,
            project_id=acceptance.project_id,
            name=request.name,
            description=request.description,
            metadata=request.metadata,
            share_id=share.id,
            size=share.size,
            status=SnapshotStatus.CREATING.value,
            created_at=db_now(),
            updated_at=db_now(),
        )
    )
    return Begin(
        "create_snapshot",
        ("share", share.id),
        share.backend,
        payload={"snapshot_id": snapshot_id},
    )


def delete(acceptance: Acceptance) -> Begin:
    """Begin (or queue) a snapshot's deletion, unless a share is being created from it."""
    connection = acceptance.connection
    snapshot = lookup.snapshot(connection, acceptance.request.snapshot_id, acceptance.project_id)
    lookup.check_status(
        snapshot, ObjectKind.SNAPSHOT, "available", "error", "error_deleting", to="delete"
    )
    copying = connection.execute(
        select(func.count())
        .select_from(shares)
        .where(shares.c.snapshot_id == snapshot.id, shares.c.status == ShareStatus.CREATING.value)
    ).scalar_one()
    if copying:
        raise Conflict(
            f"{copying} share{'s are' if copying > 1 else ' is'} being created from snapshot "
            f"{snapshot.id}; delete it afterwards.",
            object=ObjectKind.SNAPSHOT.ref(snapshot.id),
        )
    share = lookup.share(connection, snapshot.share_id, acceptance.project_id)
    snapshots.set_snapshot(connection, snapshot.id, SnapshotStatus.DELETING)
    return Begin("delete_snapshot", ("share", share.id), share.backend)
