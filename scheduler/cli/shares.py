"""Shares."""

from __future__ import annotations

from typing import Any, Final

import click

from scheduler.cli.options import changing, described, listing, pairs
from scheduler.cli.session import Session, pass_session

_SHARES: Final = ("id", "name", "size", "share_proto", "status", "share_network_id", "backend")


@click.group()
def share() -> None:
    """Shares: create, delete, extend, show, list."""


@share.command("create")
@click.argument("size", type=int)
@click.option("--share-proto", type=click.Choice(["NFS", "CIFS"]), help="Default: NFS.")
@click.option("--share-type", help="Name or id of a share type.")
@click.option("--share-network", "share_network_id", help="Id of a share network.")
@click.option("--snapshot", "snapshot_id", help="Id of a snapshot to begin with.")
@described
@changing
@pass_session
def create_share(session: Session, metadata: tuple[str, ...], **options: Any) -> None:
    """Make a share of SIZE GiB."""
    session.change("create_share", metadata=pairs(metadata, "--metadata"), **options)


@share.command("delete")
@click.argument("share_id")
@changing
@pass_session
def delete_share(session: Session, **options: Any) -> None:
    """Remove a share and all that is in it."""
    session.change("delete_share", **options)


@share.command("extend")
@click.argument("share_id")
@click.argument("new_size", type=int)
@changing
@pass_session
def extend_share(session: Session, **options: Any) -> None:
    """Make a share NEW_SIZE GiB large."""
    session.change("extend_share", **options)


@share.command("show")
@click.argument("share_id")
@pass_session
def show_share(session: Session, share_id: str) -> None:
    """Show a share."""
    session.print(session.read("show_share", share_id=share_id))


@share.command("list")
@click.option("--name")
@click.option("--status")
@click.option("--share-network", "share_network_id", metavar="ID")
@click.option("--share-server", "share_server_id", metavar="ID")
@click.option("--share-type", metavar="NAME|ID")
@click.option("--snapshot", "snapshot_id", metavar="ID")
@click.option("--backend")
@listing
@pass_session
def list_shares(session: Session, **filters: Any) -> None:
    """List shares, oldest first."""
    session.print_list(session.read("list_shares", **filters), _SHARES)
