"""Snapshots."""

from __future__ import annotations

from typing import Any, Final

import click

from scheduler.cli.options import changing, described, listing, pairs
from scheduler.cli.session import Session, pass_session

_SNAPSHOTS: Final = ("id", "name", "share_id", "size", "status", "created_at")


@click.group()
def snapshot() -> None:
    """Snapshots: create, delete, show, list."""


@snapshot.command("create")
@click.argument("share_id")
@described
@changing
@pass_session
def create_snapshot(session: Session, metadata: tuple[str, ...], **options: Any) -> None:
    """Keep a share's present content."""
    session.change("create_snapshot", metadata=pairs(metadata, "--metadata"), **options)


@snapshot.command("delete")
@click.argument("snapshot_id")
@changing
@pass_session
def delete_snapshot(session: Session, **options: Any) -> None:
    """Remove a snapshot."""
    session.change("delete_snapshot", **options)


@snapshot.command("show")
@click.argument("snapshot_id")
@pass_session
def show_snapshot(session: Session, snapshot_id: str) -> None:
    """Show a snapshot."""
    session.print(session.read("show_snapshot", snapshot_id=snapshot_id))


@snapshot.command("list")
@click.option("--name")
@click.option("--status")
@click.option("--share", "share_id", metavar="ID")
@listing
@pass_session
def list_snapshots(session: Session, **filters: Any) -> None:
    """List snapshots, oldest first."""
    session.print_list(session.read("list_snapshots", **filters), _SNAPSHOTS)
