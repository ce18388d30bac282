"""Operations, messages that were kept aside, and the payloads' schemas."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import click

from scheduler.cli.exits import Unreachable
from scheduler.cli.options import changing, listing
from scheduler.cli.session import Session, pass_session

_OPERATIONS: Final = ("id", "verb", "state", "task", "resource_id", "accepted_at", "finished_at")
_POISON: Final = ("id", "queue", "reason", "size", "received_at", "replayable", "replayed_at")


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


@click.group()
def poison() -> None:
    """Messages that could not be read, kept aside: list, show, replay, drop."""


def _ask(session: Session, query: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    found = session.query(query)
    if found is None:
        raise Unreachable("The database cannot be reached; these are read from nowhere else.")
    return found


@poison.command("list")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
@click.option("--marker", type=int, help="The last id of the page before.")
@pass_session
def list_poison(session: Session, limit: int, marker: int | None) -> None:
    """List what was kept aside, oldest first."""
    from scheduler.quarantine import list_poison_messages  # noqa: PLC0415 - after `--help`

    document = _ask(session, lambda found: list_poison_messages(found, limit, marker))
    session.print_list(document, _POISON)


@poison.command("show")
@click.argument("message_id", type=int)
@pass_session
def show_poison(session: Session, message_id: int) -> None:
    """Show a message that was kept aside, with its body."""
    from scheduler.quarantine import show_poison_message  # noqa: PLC0415 - after `--help`

    session.print(_ask(session, lambda found: show_poison_message(found, message_id)))


@poison.command("replay")
@click.argument("message_id", type=int)
@pass_session
def replay_poison(session: Session, message_id: int) -> None:
    """Publish a message again to the queue that it came from, once."""
    from scheduler.poison import replay  # noqa: PLC0415 - after `--help`

    with session.writing():
        queue = replay(session.config, message_id)
    session.print({"id": message_id, "queue": queue, "replayed": True})


@poison.command("drop")
@click.argument("message_id", type=int)
@pass_session
def drop_poison(session: Session, message_id: int) -> None:
    """Forget a message that was kept aside."""
    from scheduler.poison import drop  # noqa: PLC0415 - after `--help`

    with session.writing():
        drop(session.config, message_id)
    session.print({"id": message_id, "dropped": True})


@click.command()
@click.argument("verb", required=False)
def schema(verb: str | None) -> None:
    """Print the JSON Schema of VERB's payload, or of all verbs' by name."""
    from scheduler.requests import VERBS  # noqa: PLC0415 - after `--help`

    if verb is None:
        document = {name: known.model.model_json_schema() for name, known in VERBS.items()}
    elif verb in VERBS:
        document = VERBS[verb].model.model_json_schema()
    else:
        raise click.BadParameter(f"there is no verb {verb!r}; there are {', '.join(VERBS)}.")
    click.echo(json.dumps(document, indent=2))
