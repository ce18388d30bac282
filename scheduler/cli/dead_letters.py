"""Dead letters: messages that no task could be run for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click

from scheduler.cli.session import Session, pass_session
from scheduler.exits import Unreachable

_POISON: Final = ("id", "queue", "reason", "size", "received_at", "replayable", "replayed_at")


@click.group()
def dead_letter() -> None:
    """Messages that could not be read, kept aside: list, show, replay, drop."""


def _ask(session: Session, query: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    found = session.query(query)
    if found is None:
        raise Unreachable("The database cannot be reached; these are read from nowhere else.")
    return found


@dead_letter.command("list")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
@click.option("--marker", type=int, help="The last id of the page before.")
@pass_session
def list_dead_letters(session: Session, limit: int, marker: int | None) -> None:
    """List what was kept aside, oldest first."""
    from scheduler.queries.dead_letters import list_dead_letters  # noqa: PLC0415 - after `--help`

    document = _ask(session, lambda found: list_dead_letters(found, limit, marker))
    session.print_list(document, _POISON)


@dead_letter.command("show")
@click.argument("message_id", type=int)
@pass_session
def show_dead_letter(session: Session, message_id: int) -> None:
    """Show a message that was kept aside, with its body."""
    from scheduler.queries.dead_letters import show_dead_letter  # noqa: PLC0415 - after `--help`

    session.print(_ask(session, lambda found: show_dead_letter(found, message_id)))


@dead_letter.command("replay")
@click.argument("message_id", type=int)
@pass_session
def replay_dead_letter(session: Session, message_id: int) -> None:
    """Publish a message again to the queue that it came from, once."""
    from scheduler.service.dead_letters import replay  # noqa: PLC0415 - after `--help`

    with session.tx():
        queue = replay(session.config, message_id)
    session.print({"id": message_id, "queue": queue, "replayed": True})


@dead_letter.command("drop")
@click.argument("message_id", type=int)
@pass_session
def drop_dead_letter(session: Session, message_id: int) -> None:
    """Forget a message that was kept aside."""
    from scheduler.service.dead_letters import drop  # noqa: PLC0415 - after `--help`

    with session.tx():
        drop(session.config, message_id)
    session.print({"id": message_id, "dropped": True})
