"""Share servers."""

from __future__ import annotations

import time
from itertools import chain
from typing import Any, Final

import click

from scheduler.cli.commands import Group
from scheduler.cli.options import changing, listing, one_of
from scheduler.cli.references import SHARE_NETWORK, SHARE_SERVER, reference, referring
from scheduler.cli.session import Session, pass_session
from worker.errors import RequestFailed
from worker.model import ServerStatus

_SERVERS: Final = ("id", "status", "share_network_id", "backend", "shares", "gib", "server_id")


@click.group(cls=Group)
def share_server() -> None:
    """Share servers: show, list, ensure, delete."""


@share_server.command("show")
@reference("share_server_id", SHARE_SERVER)
@pass_session
def show_share_server(session: Session, share_server_id: str) -> None:
    """Show a share server."""
    session.print(session.read("show_share_server", share_server_id=share_server_id))


@share_server.command("list")
@one_of("--status", ServerStatus, "Only those of this status.")
@referring("--share-network", "share_network_id", SHARE_NETWORK, "Only those on this network.")
@click.option("--backend", help="Only those of this backend.")
@listing
@pass_session
def list_share_servers(session: Session, **filters: Any) -> None:
    """List share servers, oldest first."""
    session.print_list(session.read("list_share_servers", **filters), _SERVERS)


@share_server.command("delete")
@reference("share_server_id", SHARE_SERVER)
@changing
@pass_session
def delete_share_server(session: Session, **options: Any) -> None:
    """Delete a share server that no share is on (an administrator's), also one in error."""
    session.change("delete_share_server", **options)


@share_server.command("ensure")
@reference("share_server_id", SHARE_SERVER, required=False)
@click.option("--backend", help="All servers of this backend.")
@click.option("--host", help="All servers of the backends that are bound to this host.")
@changing
@pass_session
def ensure_share_servers(session: Session, *, wait: bool, timeout: float, **options: Any) -> None:
    """Bring share servers and exports back from the database (an administrator's).

    Of one server, a backend, a host, or all. What serves already is left alone, so it may be run
    again at any time.
    """
    deadline = time.monotonic() + timeout
    asked = session.send("ensure_share_servers", **options)
    if not wait:
        session.print({"operation_id": asked})
        return
    servers = session.watch(asked, timeout)["operations"]
    shares: list[str] = []
    failures: list[RequestFailed] = []
    for number, operation_id in enumerate(chain(servers, shares)):
        try:
            answer = session.watch(operation_id, max(0.0, deadline - time.monotonic()))
        except RequestFailed as error:
            failures.append(error)
            continue
        if number < len(servers):
            shares.extend(answer["operations"])
    for other in failures[1:]:
        click.echo(f"sharewright: {other}", err=True)
    if failures:
        raise failures[0]
    session.print({"share_servers": len(servers), "shares": len(shares)})
