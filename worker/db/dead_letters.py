"""Dead letters: messages for which no task could be run, stored for an operator to list."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, delete, select, update

from worker.db.core.engine import db_now, engine_for, insert_into, transaction
from worker.db.tables.main import counters, dead_letters

_m: Final = dead_letters.c


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Message for which no task could be run, as it is stored.

    ``fingerprint`` is the same when the broker delivers the message again, so it is stored once.
    ``body`` is cut after its first kilobytes; ``size`` is the whole message's size in bytes,
    headers included. Body and headers come from the producer and may contain secrets: show them to
    operators only. ``message`` is the document that a replay publishes; None when the message was
    too large to be stored in full.
    """

    fingerprint: str
    queue: str
    reason: str
    body: str
    headers: Mapping[str, str]
    size: int
    received_at: datetime
    message: str | None = None


def keep(connection: Connection, dead_letter: DeadLetter) -> None:
    """Store a message once, however often it is delivered.

    If it was replayed meanwhile, it may be replayed again.
    """
    statement = insert_into(connection, dead_letters).values(
        fingerprint=dead_letter.fingerprint,
        queue=dead_letter.queue[:255],
        reason=dead_letter.reason,
        headers=dict(dead_letter.headers),
        body=dead_letter.body,
        size=dead_letter.size,
        message=dead_letter.message,
        received_at=db_now(),
    )
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[_m.fingerprint],
            set_={"replayed_at": None, "reason": dead_letter.reason},
            where=_m.replayed_at.is_not(None),
        )
    )


def begin_replay(connection: Connection, message_id: int) -> Row[Any] | None:
    """Record that a message is published again; return its row, None if it may not be."""
    return connection.execute(
        update(dead_letters)
        .where(_m.id == message_id, _m.replayed_at.is_(None), _m.message.is_not(None))
        .values(replayed_at=db_now())
        .returning(_m.queue, _m.message)
    ).first()


def replay_failed(connection: Connection, message_id: int) -> None:
    """Record that the broker did not take a message, so that it may be published again."""
    connection.execute(update(dead_letters).where(_m.id == message_id).values(replayed_at=None))


def find(connection: Connection, message_id: int) -> Row[Any] | None:
    """Return the row of a stored message, or None."""
    return connection.execute(select(dead_letters).where(_m.id == message_id)).first()


def drop(connection: Connection, message_id: int) -> bool:
    """Delete a stored message; False when there is none of this id."""
    return connection.execute(delete(dead_letters).where(_m.id == message_id)).rowcount == 1


def drop_all(
    connection: Connection, *, queue: str | None = None, older_than: float | None = None
) -> int:
    """Delete the stored messages of a queue, or of all queues; return how many.

    ``older_than`` is a minimum age in seconds, None for any.
    """
    statement = delete(dead_letters)
    if queue is not None:
        statement = statement.where(_m.queue == queue)
    if older_than is not None:
        statement = statement.where(_m.received_at < db_now() - older_than)
    return connection.execute(statement).rowcount


def purge(connection: Connection, keep_seconds: float, most: int) -> int:
    """Delete messages older than ``keep_seconds``, among the ``most`` oldest; return how many."""
    # The oldest have the lowest ids, so the rows that stay are not scanned.
    oldest = select(_m.id, _m.received_at).order_by(_m.id).limit(most).subquery()
    old = select(oldest.c.id).where(oldest.c.received_at < db_now() - keep_seconds)
    return connection.execute(delete(dead_letters).where(_m.id.in_(old))).rowcount


@dataclass(frozen=True, slots=True)
class DatabaseDeadLetters:
    """Store of dead letters for a worker's main process; it keeps its connection open."""

    database_url: str

    def keep(self, dead_letter: DeadLetter) -> None:
        """Store a dead letter."""
        with self._transaction() as connection:
            keep(connection, dead_letter)

    def count_dropped(self, queue: str, number: int) -> None:
        """Add to the number of messages that were dropped without being stored."""
        name = f"dead_letters_dropped_total:{queue}"
        with self._transaction() as connection:
            statement = insert_into(connection, counters).values(name=name, value=number)
            connection.execute(
                statement.on_conflict_do_update(
                    index_elements=[counters.c.name],
                    set_={"value": counters.c.value + number},
                )
            )

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        engine = engine_for(self.database_url)
        try:
            with transaction(engine) as connection:
                yield connection
        finally:
            # A connection to SQLite must not be open when the process forks. One to PostgreSQL
            # may: the child drops it without closing it.
            if engine.dialect.name == "sqlite":
                engine.dispose()
