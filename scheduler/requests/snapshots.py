"""Requests about snapshots."""

from __future__ import annotations

from scheduler.requests.base import Described, ListPayload, Payload
from scheduler.requests.fields import Id, Name
from worker.model import SnapshotStatus


class CreateSnapshot(Described):
    """Create a snapshot of a share's present content."""

    share_id: Id


class SnapshotOnly(Payload):
    """A request that names a snapshot and nothing else."""

    snapshot_id: Id


class ListSnapshots(ListPayload):
    """List snapshots, oldest first."""

    name: Name | None = None
    status: SnapshotStatus | None = None
    share_id: Id | None = None
