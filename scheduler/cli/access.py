"""The `access` commands."""

from __future__ import annotations

from typing import Any, Final

import click

from scheduler.cli.commands import Group, argument
from scheduler.cli.options import changing, listing, one_of
from scheduler.cli.references import ACCESS_RULE, SHARE, reference
from scheduler.cli.session import Session, pass_session
from worker.model import AccessState

_RULES: Final = ("id", "access_type", "access_to", "access_level", "state")


@click.group(cls=Group)
def access() -> None:
    """Who may mount a share: allow, deny, list."""


@access.command("allow")
@reference("share_id", SHARE)
@argument("access_to", "An IP address, or a network as ADDRESS/PREFIX.")
@click.option("--level", "access_level", type=click.Choice(["rw", "ro"]), help="Default: rw.")
@changing
@pass_session
def allow_access(session: Session, **options: Any) -> None:
    """Let ACCESS_TO (an address or CIDR) mount a share."""
    session.change("allow_access", **options)


@access.command("deny")
@reference("share_id", SHARE)
@reference("access_id", ACCESS_RULE)
@changing
@pass_session
def deny_access(session: Session, **options: Any) -> None:
    """Withdraw the rule ACCESS_ID, or the one for that address."""
    session.change("deny_access", **options)


@access.command("list")
@reference("share_id", SHARE)
@one_of("--state", AccessState, "Only rules in this state.")
@listing
@pass_session
def list_access(session: Session, **filters: Any) -> None:
    """List a share's rules, oldest first."""
    session.print_list(session.read("list_access", **filters), _RULES)
