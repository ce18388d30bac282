"""Shares."""

from __future__ import annotations

from typing import Any, Final

import click

from scheduler.cli.commands import Group, argument
from scheduler.cli.options import changing, described, listing, one_of, pairs
from scheduler.cli.references import (
    SHARE,
    SHARE_NETWORK,
    SHARE_SERVER,
    SNAPSHOT,
    reference,
    referring,
)
from scheduler.cli.session import Session, pass_session
from worker.model import ShareStatus

_SHARES: Final = ("id", "name", "size", "share_proto", "status", "share_network_id", "backend")


@click.group(cls=Group)
def share() -> None:
    """Shares: create, delete, extend, show, list."""


@share.command("create")
@argument("size", "Whole GiB.", type=int)
@click.option("--share-proto", type=click.Choice(["NFS", "CIFS"]), help="Default: NFS.")
@click.option("--share-type", help="Name or id of a share type.")
@referring("--share-network", "share_network_id", SHARE_NETWORK, "Where it is reached from.")
@referring("--snapshot", "snapshot_id", SNAPSHOT, "A snapshot whose content it begins with.")
@described
@changing
@pass_session
def create_share(session: Session, metadata: tuple[str, ...], **options: Any) -> None:
    """Create a share of SIZE GiB."""
    session.change("create_share", metadata=pairs(metadata, "--metadata"), **options)


@share.command("delete")
@reference("share_id", SHARE)
@changing
@pass_session
def delete_share(session: Session, **options: Any) -> None:
    """Delete a share and all that is in it. Asks nothing: the data is gone."""
    session.change("delete_share", **options)


@share.command("extend")
@reference("share_id", SHARE)
@argument("new_size", "Whole GiB, more than before.", type=int)
@changing
@pass_session
def extend_share(session: Session, **options: Any) -> None:
    """Enlarge a share to NEW_SIZE GiB."""
    session.change("extend_share", **options)


@share.command("show")
@reference("share_id", SHARE)
@pass_session
def show_share(session: Session, share_id: str) -> None:
    """Show a share."""
    session.print(session.read("show_share", share_id=share_id))


@share.command("list")
@click.option("--name", help="Only those of this name.")
@one_of("--status", ShareStatus, "Only those of this status.")
@referring("--share-network", "share_network_id", SHARE_NETWORK, "Only those on this network.")
@referring("--share-server", "share_server_id", SHARE_SERVER, "Only those on this server.")
@click.option("--share-type", metavar="NAME|ID", help="Only those of this type.")
@referring("--snapshot", "snapshot_id", SNAPSHOT, "Only those begun from this snapshot.")
@click.option("--backend", help="Only those on this backend.")
@listing
@pass_session
def list_shares(session: Session, **filters: Any) -> None:
    """List shares, oldest first."""
    session.print_list(session.read("list_shares", **filters), _SHARES)
