"""Operations."""

from __future__ import annotations

from typing import Any, Final

import click

from scheduler.cli.options import changing, listing
from scheduler.cli.session import Session, pass_session

_OPERATIONS: Final = ("id", "verb", "state", "task", "resource_id", "accepted_at", "finished_at")


@click.group()
def operation() -> None:
    """Operations: show, list, watch, cancel, retry, give up."""


@operation.command("show")
@click.argument("operation_id")
@pass_session
def show_operation(session: Session, operation_id: str) -> None:
    """Show an operation with its timeline."""
    document = session.read("show_operation", operation_id=operation_id)
    if session.as_json:
        session.print(document)
        return
    steps = document.pop("steps")
    session.print(document)
    session.print_list(
        {"steps": steps}, ("task", "outcome", "attempt", "seconds", "worker", "message")
    )


@operation.command("list")
@click.option("--state")
@click.option("--verb")
@click.option("--resource", "resource_id", metavar="ID")
@listing
@pass_session
def list_operations(session: Session, **filters: Any) -> None:
    """List operations in the order of their acceptance."""
    session.print_list(session.read("list_operations", **filters), _OPERATIONS)


@operation.command("watch")
@click.argument("operation_id")
@click.option("--timeout", type=click.FloatRange(min=0), default=600.0, show_default=True)
@pass_session
def watch_operation(session: Session, operation_id: str, timeout: float) -> None:
    """Show an operation's steps until it ends, then its result; exits as the operation ended."""
    session.print(session.watch(operation_id, timeout))


@operation.command("cancel")
@click.argument("operation_id")
@changing
@pass_session
def cancel_operation(session: Session, **options: Any) -> None:
    """Undo an operation from where it stands (an administrator's); a step that runs ends first."""
    session.change("cancel_operation", **options)


@operation.command("retry")
@click.argument("operation_id")
@changing
@pass_session
def retry_operation(session: Session, **options: Any) -> None:
    """Try an operation now that waits for its next attempt (an administrator's)."""
    session.change("retry_operation", **options)


@operation.command("give-up")
@click.argument("operation_id")
@changing
@pass_session
def give_up_operation(session: Session, **options: Any) -> None:
    """End an operation that could not be undone; the audit takes over (an administrator's)."""
    session.change("give_up_operation", **options)
