"""Access rules: who may mount a share."""

from __future__ import annotations

from typing import Any, Final

import click

from scheduler.cli.options import changing, listing
from scheduler.cli.session import Session, pass_session

_RULES: Final = ("id", "access_type", "access_to", "access_level", "state")


@click.group()
def access() -> None:
    """Who may mount a share: allow, deny, list."""


@access.command("allow")
@click.argument("share_id")
@click.argument("access_to")
@click.option("--level", "access_level", type=click.Choice(["rw", "ro"]), help="Default: rw.")
@changing
@pass_session
def allow_access(session: Session, **options: Any) -> None:
    """Let ACCESS_TO (an address or CIDR) mount a share."""
    session.change("allow_access", **options)


@access.command("deny")
@click.argument("share_id")
@click.argument("access_id")
@changing
@pass_session
def deny_access(session: Session, **options: Any) -> None:
    """Withdraw the rule ACCESS_ID."""
    session.change("deny_access", **options)


@access.command("list")
@click.argument("share_id")
@click.option("--state")
@listing
@pass_session
def list_access(session: Session, **filters: Any) -> None:
    """List a share's rules, oldest first."""
    session.print_list(session.read("list_access", **filters), _RULES)
