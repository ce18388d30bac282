"""Operations."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import click

from scheduler.cli.commands import Group
from scheduler.cli.options import changing, listing, one_of
from scheduler.cli.references import OPERATION, reference
from scheduler.cli.session import Session, pass_session
from worker.model import OperationState, Phase

_OPERATIONS: Final = ("id", "verb", "state", "task", "accepted_at", "finished_at", "resource_id")
_STEPS: Final = ("task", "outcome", "attempt", "seconds", "worker", "message")


@click.group(cls=Group)
def operation() -> None:
    """Operations: show, list, watch, cancel, retry, give up."""


@operation.command("show")
@reference("operation_id", OPERATION)
@pass_session
def show_operation(session: Session, operation_id: str) -> None:
    """Show an operation with its timeline, and what it waits for."""
    document = session.read("show_operation", operation_id=operation_id)
    if session.as_json:
        session.print(document)
        return
    steps = document.pop("steps")
    session.print({**document, "now": now(document, time.time())})
    session.print_list({"steps": steps}, _STEPS)


def now(operation: Mapping[str, Any], at: float) -> str:
    """Say what an operation is doing at a time, or waits for."""
    phase, state = operation["phase"], operation["state"]
    if phase is None:
        return "has ended" if OperationState(state).has_ended else "waits for those before it"
    if phase == Phase.WAITING:
        return f"waits for {operation['waits_for'] or 'its next attempt'}"
    if phase == Phase.QUEUED and operation["queued_at"]:
        seconds = max(0, round(at - datetime.fromisoformat(operation["queued_at"]).timestamp()))
        return (
            f"published {seconds} s ago to the queue {operation['queue']}, not fetched yet; "
            f"it is fetched by a worker of the group {operation['group']}"
        )
    return f"{phase} by {operation['worker'] or 'nobody'}"


@operation.command("list")
@one_of("--state", OperationState, "Only those in this state.")
@click.option("--verb", help="Only those of this request, such as create_share.")
@click.option("--resource", "resource_id", metavar="ID", help="Only those on this object.")
@click.option("--live", is_flag=True, help="Only those that have not ended.")
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Only those accepted longer ago than this.",
)
@listing
@pass_session
def list_operations(session: Session, *, live: bool, **filters: Any) -> None:
    """List operations, newest first."""
    document = session.read("list_operations", newest_first=True, live=live or None, **filters)
    session.print_list(document, _OPERATIONS)


@operation.command("watch")
@reference("operation_id", OPERATION)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    help="Seconds to wait; the operation goes on afterwards.",
)
@pass_session
def watch_operation(session: Session, operation_id: str, timeout: float) -> None:
    """Show an operation's steps until it ends, then its result; exits as the operation ended."""
    session.print(session.watch(operation_id, timeout))


@operation.command("cancel")
@reference("operation_id", OPERATION)
@changing
@pass_session
def cancel_operation(session: Session, **options: Any) -> None:
    """Undo an operation from where it stands (an administrator's); a step that runs ends first."""
    session.change("cancel_operation", **options)


@operation.command("retry")
@reference("operation_id", OPERATION)
@changing
@pass_session
def retry_operation(session: Session, **options: Any) -> None:
    """Try an operation now that waits for its next attempt (an administrator's)."""
    session.change("retry_operation", **options)


@operation.command("give-up")
@reference("operation_id", OPERATION)
@changing
@pass_session
def give_up_operation(session: Session, **options: Any) -> None:
    """End an operation that could not be undone; the audit takes over (an administrator's)."""
    session.change("give_up_operation", **options)
