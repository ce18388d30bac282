"""Share types."""

from __future__ import annotations

from typing import Any, Final

import click

from scheduler.cli.commands import Group, argument
from scheduler.cli.options import changing, listing, pairs
from scheduler.cli.session import Session, pass_session

_TYPES: Final = ("id", "name", "extra_specs", "description")


@click.group(cls=Group)
def share_type() -> None:
    """Named demands on a backend (an administrator's): create, delete, show, list."""


@share_type.command("create")
@argument("name", "The new type's name, unique.")
@click.option("--description", help="A text.")
@click.option(
    "--extra-spec", multiple=True, metavar="KEY=VALUE", help="May be given several times."
)
@changing
@pass_session
def create_share_type(session: Session, extra_spec: tuple[str, ...], **options: Any) -> None:
    """Create a share type."""
    session.change("create_share_type", extra_specs=pairs(extra_spec, "--extra-spec"), **options)


@share_type.command("delete")
@argument("share_type", "A share type: its name or id.")
@changing
@pass_session
def delete_share_type(session: Session, **options: Any) -> None:
    """Remove a share type that no share has."""
    session.change("delete_share_type", **options)


@share_type.command("show")
@argument("share_type", "A share type: its name or id.")
@pass_session
def show_share_type(session: Session, share_type: str) -> None:
    """Show a share type, by name or id."""
    session.print(session.read("show_share_type", share_type=share_type))


@share_type.command("list")
@click.option("--name", help="Only the one of this name.")
@listing
@pass_session
def list_share_types(session: Session, **filters: Any) -> None:
    """List share types, oldest first."""
    session.print_list(session.read("list_share_types", **filters), _TYPES)
