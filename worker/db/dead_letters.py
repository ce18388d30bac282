"""Messages that no task could be run for, kept where an operator can list them."""

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
    """What is kept of a message that no task could be run for.

    ``fingerprint`` is the same when the broker delivers the message again, so it is kept once.
    ``body`` is cut at its first kilobytes, ``size`` is the message's whole size in bytes, headers
    included. Body and headers are the producer's own and may contain what it should not have sent:
    show them to operators only. ``message`` is all that a replay needs; None where not all of it
    is kept.
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
    """Keep a message; one that was delivered twice is kept once, as if it were new."""
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
    """Note that a message is published again; None when it was already, or cannot be."""
    return connection.execute(
        update(dead_letters)
        .where(_m.id == message_id, _m.replayed_at.is_(None), _m.message.is_not(None))
        .values(replayed_at=db_now())
        .returning(_m.queue, _m.message)
    ).first()


def replay_failed(connection: Connection, message_id: int) -> None:
    """Note that the broker did not take a message: it may be published again."""
    connection.execute(update(dead_letters).where(_m.id == message_id).values(replayed_at=None))


def find(connection: Connection, message_id: int) -> Row[Any] | None:
    """Return a message that was kept aside."""
    return connection.execute(select(dead_letters).where(_m.id == message_id)).first()


def drop(connection: Connection, message_id: int) -> bool:
    """Forget a message; False when there is none."""
    return connection.execute(delete(dead_letters).where(_m.id == message_id)).rowcount == 1


def drop_all(
    connection: Connection, *, queue: str | None = None, older_than: float | None = None
) -> int:
    """Forget the messages of a queue, or of all; return how many there were.

    ``older_than`` is an age in seconds, None for any.
    """
    statement = delete(dead_letters)
    if queue is not None:
        statement = statement.where(_m.queue == queue)
    if older_than is not None:
        statement = statement.where(_m.received_at < db_now() - older_than)
    return connection.execute(statement).rowcount


def purge(connection: Connection, keep_seconds: float, most: int) -> int:
    """Forget up to ``most`` of the oldest messages, those older than they are kept."""
    # The oldest have the lowest ids: no scan of all that is to stay.
    oldest = select(_m.id, _m.received_at).order_by(_m.id).limit(most).subquery()
    old = select(oldest.c.id).where(oldest.c.received_at < db_now() - keep_seconds)
    return connection.execute(delete(dead_letters).where(_m.id.in_(old))).rowcount


@dataclass(frozen=True, slots=True)
class DatabaseDeadLetters:
    """Dead letters of a worker's main process, which keeps its connection between them."""

    database_url: str

    def keep(self, dead_letter: DeadLetter) -> None:
        """Store a dead letter."""
        with self._transaction() as connection:
            keep(connection, dead_letter)

    def count_dropped(self, queue: str, number: int) -> None:
        """Add to the number of messages that were dropped unkept."""
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
            # A connection to SQLite must not be there for a later fork. One to PostgreSQL may: a
            # child forgets it without closing it.
            if engine.dialect.name == "sqlite":
                engine.dispose()
