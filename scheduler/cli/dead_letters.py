"""Dead letters: messages that no task could be run for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click

from scheduler.cli.commands import Group, argument
from scheduler.cli.session import Session, pass_operator
from scheduler.exits import Unreachable

_COLUMNS: Final = ("id", "queue", "reason", "size", "received_at", "replayable", "replayed_at")


@click.group(cls=Group)
def dead_letter() -> None:
    """Messages that could not be read, kept aside: list, show, replay, drop."""


def _ask(session: Session, query: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    found = session.query(query)
    if found is None:
        raise Unreachable("The database cannot be reached; these are read from nowhere else.")
    return found


@dead_letter.command("list")
@click.option(
    "--limit",
    type=click.IntRange(1, 1000),
    default=100,
    show_default=True,
    help="Messages to show at most.",
)
@click.option("--marker", type=int, help="Go on after this id, the last of the page before.")
@pass_operator
def list_dead_letters(session: Session, limit: int, marker: int | None) -> None:
    """List dead letters, oldest first."""
    from scheduler.queries.dead_letters import list_dead_letters  # noqa: PLC0415 - after `--help`

    document = _ask(session, lambda found: list_dead_letters(found, limit, marker))
    session.print_list(document, _COLUMNS)


@dead_letter.command("show")
@argument("message_id", "A message's number; see `dead-letter list`.", type=int)
@pass_operator
def show_dead_letter(session: Session, message_id: int) -> None:
    """Show a message that was kept aside, with its body."""
    from scheduler.queries.dead_letters import show_dead_letter  # noqa: PLC0415 - after `--help`

    session.print(_ask(session, lambda found: show_dead_letter(found, message_id)))


@dead_letter.command("replay")
@argument("message_id", "A message's number; see `dead-letter list`.", type=int)
@pass_operator
def replay_dead_letter(session: Session, message_id: int) -> None:
    """Publish a message again to the queue that it came from, once."""
    from scheduler.service.dead_letters import replay  # noqa: PLC0415 - after `--help`

    with session.reaching():
        queue = replay(session.config, message_id)
    session.print({"id": message_id, "queue": queue, "replayed": True})


@dead_letter.command("drop")
@argument("message_id", "A message's number; see `dead-letter list`.", type=int, required=False)
@click.option("--all", "everything", is_flag=True, help="All of them.")
@click.option("--queue", help="All that came from this queue.")
@click.option(
    "--older-than", type=click.FloatRange(min=0), help="All that are older than so many seconds."
)
@pass_operator
def drop_dead_letter(
    session: Session,
    message_id: int | None,
    *,
    everything: bool,
    queue: str | None,
    older_than: float | None,
) -> None:
    """Delete one message that was kept aside, or many: all, a queue's, or old ones."""
    from scheduler.service.dead_letters import drop, drop_all  # noqa: PLC0415 - after `--help`

    many = everything or queue is not None or older_than is not None
    if many == (message_id is not None):
        raise click.UsageError(
            "Name one message by its id, or several by --all, --queue or --older-than."
        )
    with session.reaching():
        if message_id is None:
            dropped = drop_all(session.config, queue=queue, older_than=older_than)
            session.print({"dropped": dropped})
        else:
            drop(session.config, message_id)
            session.print({"id": message_id, "dropped": True})
