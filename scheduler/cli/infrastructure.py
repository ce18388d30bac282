"""Share types, share servers and backends."""

from __future__ import annotations

import time
from itertools import chain
from typing import Any, Final

import click

from scheduler.cli.options import changing, listing, pairs
from scheduler.cli.session import Session, pass_session
from worker.errors import RequestFailed

_TYPES: Final = ("id", "name", "extra_specs", "description")
_SERVERS: Final = ("id", "status", "share_network_id", "backend", "shares", "gib", "server_id")
_BACKENDS: Final = ("name", "enabled", "state", "reported_at", "report_error")


@click.group()
def share_type() -> None:
    """Named demands on a backend (an administrator's): create, delete, show, list."""


@share_type.command("create")
@click.argument("name")
@click.option("--description")
@click.option(
    "--extra-spec", multiple=True, metavar="KEY=VALUE", help="May be given several times."
)
@changing
@pass_session
def create_share_type(session: Session, extra_spec: tuple[str, ...], **options: Any) -> None:
    """Make a share type."""
    session.change("create_share_type", extra_specs=pairs(extra_spec, "--extra-spec"), **options)


@share_type.command("delete")
@click.argument("share_type")
@changing
@pass_session
def delete_share_type(session: Session, **options: Any) -> None:
    """Remove a share type that no share has."""
    session.change("delete_share_type", **options)


@share_type.command("show")
@click.argument("share_type")
@pass_session
def show_share_type(session: Session, share_type: str) -> None:
    """Show a share type, by name or id."""
    session.print(session.read("show_share_type", share_type=share_type))


@share_type.command("list")
@click.option("--name")
@listing
@pass_session
def list_share_types(session: Session, **filters: Any) -> None:
    """List share types, oldest first."""
    session.print_list(session.read("list_share_types", **filters), _TYPES)


@click.group()
def share_server() -> None:
    """Share servers: show, list, ensure, delete."""


@share_server.command("show")
@click.argument("share_server_id")
@pass_session
def show_share_server(session: Session, share_server_id: str) -> None:
    """Show a share server."""
    session.print(session.read("show_share_server", share_server_id=share_server_id))


@share_server.command("list")
@click.option("--status")
@click.option("--share-network", "share_network_id", metavar="ID")
@click.option("--backend")
@listing
@pass_session
def list_share_servers(session: Session, **filters: Any) -> None:
    """List share servers, oldest first."""
    session.print_list(session.read("list_share_servers", **filters), _SERVERS)


@share_server.command("delete")
@click.argument("share_server_id")
@changing
@pass_session
def delete_share_server(session: Session, **options: Any) -> None:
    """Delete a share server that no share is on (an administrator's), also one in error."""
    session.change("delete_share_server", **options)


@share_server.command("ensure")
@click.argument("share_server_id", required=False)
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


@click.group()
def backend() -> None:
    """Backends (an administrator's): show, list, disable, enable."""


@backend.command("show")
@click.argument("backend")
@pass_session
def show_backend(session: Session, backend: str) -> None:
    """Show a backend, whether it is up, and its storage pools."""
    session.print(session.read("show_backend", backend=backend))


@backend.command("list")
@listing
@pass_session
def list_backends(session: Session, **filters: Any) -> None:
    """List backends by name."""
    session.print_list(session.read("list_backends", **filters), _BACKENDS)


@backend.command("disable")
@click.argument("backend")
@click.option("--reason")
@changing
@pass_session
def disable_backend(session: Session, **options: Any) -> None:
    """Take a backend out of placement; what it has goes on."""
    session.change("disable_backend", **options)


@backend.command("enable")
@click.argument("backend")
@changing
@pass_session
def enable_backend(session: Session, **options: Any) -> None:
    """Let a backend be chosen again."""
    session.change("enable_backend", **options)
