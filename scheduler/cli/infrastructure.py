"""Share types, share servers and backends."""

from __future__ import annotations

from typing import Any, Final

import click

from scheduler.cli.options import changing, listing, pairs
from scheduler.cli.session import Session, pass_session

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
    """Share servers: show, list."""


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
