"""Messages that no task could be run for, kept where an operator can list them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, delete, select, update

from worker.db.core.engine import db_now, insert_into
from worker.db.tables.main import dead_letters

_m: Final = dead_letters.c


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What is kept of a message that no task could be run for.

    ``fingerprint`` is the same when the broker delivers the message again, so a quarantine that
    has it already need not keep it twice. ``body`` is cut at its first kilobytes and
    ``size`` is its whole size in bytes, headers included. Body and headers are the producer's
    own and may contain what it should not have sent: show them to operators only.
    ``message`` is all that a replay needs; None where not all of it is kept.
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
    """The broker did not take it: it may be published again."""
    connection.execute(update(dead_letters).where(_m.id == message_id).values(replayed_at=None))


def find(connection: Connection, message_id: int) -> Row[Any] | None:
    """Return a message that was kept aside."""
    return connection.execute(select(dead_letters).where(_m.id == message_id)).first()


def drop(connection: Connection, message_id: int) -> bool:
    """Forget a message; False when there is none."""
    return connection.execute(delete(dead_letters).where(_m.id == message_id)).rowcount == 1
