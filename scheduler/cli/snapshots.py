"""Snapshots."""

from __future__ import annotations

from typing import Any, Final

import click

from scheduler.cli.commands import Group
from scheduler.cli.options import changing, described, listing, one_of, pairs
from scheduler.cli.references import SHARE, SNAPSHOT, reference, referring
from scheduler.cli.session import Session, pass_session
from worker.model import SnapshotStatus

_SNAPSHOTS: Final = ("id", "name", "share_id", "size", "status", "created_at")


@click.group(cls=Group)
def snapshot() -> None:
    """Snapshots: create, delete, show, list."""


@snapshot.command("create")
@reference("share_id", SHARE)
@described
@changing
@pass_session
def create_snapshot(session: Session, metadata: tuple[str, ...], **options: Any) -> None:
    """Keep a share's present content."""
    session.change("create_snapshot", metadata=pairs(metadata, "--metadata"), **options)


@snapshot.command("delete")
@reference("snapshot_id", SNAPSHOT)
@changing
@pass_session
def delete_snapshot(session: Session, **options: Any) -> None:
    """Delete a snapshot. Asks nothing."""
    session.change("delete_snapshot", **options)


@snapshot.command("show")
@reference("snapshot_id", SNAPSHOT)
@pass_session
def show_snapshot(session: Session, snapshot_id: str) -> None:
    """Show a snapshot."""
    session.print(session.read("show_snapshot", snapshot_id=snapshot_id))


@snapshot.command("list")
@click.option("--name", help="Only those of this name.")
@one_of("--status", SnapshotStatus, "Only those of this status.")
@referring("--share", "share_id", SHARE, "Only those of this share.")
@listing
@pass_session
def list_snapshots(session: Session, **filters: Any) -> None:
    """List snapshots, oldest first."""
    session.print_list(session.read("list_snapshots", **filters), _SNAPSHOTS)
