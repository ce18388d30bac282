"""Backends."""

from __future__ import annotations

from typing import Any, Final

import click

from scheduler.cli.commands import Group, argument
from scheduler.cli.options import changing, listing
from scheduler.cli.session import Session, pass_operator, pass_session

_BACKENDS: Final = ("name", "enabled", "state", "reported_at", "report_error")


@click.group(cls=Group)
def backend() -> None:
    """Backends (an administrator's): show, list, disable, enable, rename, forget."""


@backend.command("show")
@argument("backend", "A backend's name.")
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
@argument("backend", "A backend's name.")
@click.option("--reason", help="Why; `backend show` tells it.")
@changing
@pass_session
def disable_backend(session: Session, **options: Any) -> None:
    """Place no new shares on a backend; existing ones are not affected."""
    session.change("disable_backend", **options)


@backend.command("enable")
@argument("backend", "A backend's name.")
@changing
@pass_session
def enable_backend(session: Session, **options: Any) -> None:
    """Let a backend be chosen again."""
    session.change("enable_backend", **options)


@backend.command("rename")
@argument("old", "The name that the database has.")
@argument("new", "The name that the configuration has now.")
@pass_operator
def rename_backend(session: Session, old: str, new: str) -> None:
    """Follow the configuration, in which a backend has another name now."""
    from scheduler.service.backends import rename  # noqa: PLC0415 - after `--help`

    with session.reaching():
        session.print(rename(session.config, old, new))


@backend.command("forget")
@argument("name", "A backend that is not in the configuration any more.")
@click.option("--force", is_flag=True, help="Also its shares and share servers, wherever they are.")
@pass_operator
def forget_backend(session: Session, name: str, *, force: bool) -> None:
    """Forget a backend that was taken out of the configuration."""
    from scheduler.service.backends import forget  # noqa: PLC0415 - after `--help`

    with session.reaching():
        session.print(forget(session.config, name, force=force))
