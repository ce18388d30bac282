"""Publish dead letters again, or delete them; for an operator."""

from __future__ import annotations

from worker.app import make_app
from worker.config import Config
from worker.db import dead_letters
from worker.db.core.engine import engine_for, transaction
from worker.errors import Conflict, NotFound
from worker.messaging.broker import UNREACHABLE
from worker.messaging.dead_letters import publish_again


def replay(config: Config, message_id: int) -> str:
    """Publish a message again to its queue, once; return the queue.

    It is noted before it is published: should this process die in between, it is not published,
    and shown as replayed. A message that no task can be run for this time either is set aside
    anew. Raises :class:`~worker.errors.NotFound`, :class:`~worker.errors.Conflict`, and what
    :data:`worker.messaging.broker.UNREACHABLE` lists.
    """
    engine = engine_for(config.database.url)
    with transaction(engine) as connection:
        taken = dead_letters.begin_replay(connection, message_id)
        known = dead_letters.find(connection, message_id)
    if known is None:
        raise _missing(message_id)
    if taken is None:
        why = (
            "was replayed already"
            if known.message is not None
            else "is not kept whole, or was none; its producer has to send it again"
        )
        raise Conflict(f"The message {message_id} {why}.", field="message_id")
    try:
        publish_again(make_app(config), taken.queue, taken.message)
    except UNREACHABLE:
        with transaction(engine) as connection:
            dead_letters.replay_failed(connection, message_id)
        raise
    return str(taken.queue)


def drop(config: Config, message_id: int) -> None:
    """Forget a message; raises :class:`~worker.errors.NotFound`."""
    with transaction(engine_for(config.database.url)) as connection:
        if not dead_letters.drop(connection, message_id):
            raise _missing(message_id)


def drop_all(config: Config, *, queue: str | None, older_than: float | None) -> int:
    """Forget the messages of a queue, or of all; return how many there were."""
    with transaction(engine_for(config.database.url)) as connection:
        return dead_letters.drop_all(connection, queue=queue, older_than=older_than)


def _missing(message_id: int) -> NotFound:
    return NotFound(f"No message {message_id} was kept aside.", field="message_id")
