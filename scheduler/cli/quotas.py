"""Quotas."""

from __future__ import annotations

from typing import Any

import click

from scheduler.cli.commands import Group, argument
from scheduler.cli.options import changing
from scheduler.cli.session import Session, pass_session

_TYPE_HELP = "Of the objects of this share type alone, by id or name."
_LIMIT_HELP = "At most so many; -1: no limit."


@click.group(cls=Group)
def quota() -> None:
    """What a project may have: show, set, unset."""


@quota.command("show")
@argument(
    "project_id",
    "A project's id; that of --project when left out.",
    metavar="PROJECT",
    required=False,
)
@click.option("--share-type", help=_TYPE_HELP)
@pass_session
def show_quota(session: Session, **options: Any) -> None:
    """Show limits, use and reservations of a project (by default of --project)."""
    session.print(session.read("show_quota", **options))


@quota.command("set")
@argument("project_id", "A project's id.", metavar="PROJECT")
@click.option("--share-type", help=_TYPE_HELP)
@click.option("--shares", type=int, help=_LIMIT_HELP)
@click.option("--gigabytes", type=int, help=_LIMIT_HELP)
@click.option("--snapshots", type=int, help=_LIMIT_HELP)
@click.option("--snapshot-gigabytes", type=int, help=_LIMIT_HELP)
@click.option("--share-networks", type=int, help=_LIMIT_HELP)
@changing
@pass_session
def set_quota(session: Session, **options: Any) -> None:
    """Limit what a project may have (an administrator's); what it has already stays."""
    session.change("set_quota", **options)


@quota.command("unset")
@argument("project_id", "A project's id.", metavar="PROJECT")
@click.option("--share-type", help=_TYPE_HELP)
@changing
@pass_session
def unset_quota(session: Session, **options: Any) -> None:
    """Give a project the default limits back (an administrator's)."""
    session.change("unset_quota", **options)
