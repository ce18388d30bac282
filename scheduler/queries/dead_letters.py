"""Messages that were kept aside: an operator reads them from the database."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Connection, select

from worker.db.documents import moment
from worker.db.tables.main import dead_letters
from worker.errors import NotFound

_REPLAY: Final = (
    dead_letters.c.message.is_not(None).label("replayable"),
    dead_letters.c.replayed_at,
)


def list_dead_letters(connection: Connection, limit: int, marker: int | None) -> dict[str, Any]:
    """Return a page of the messages that were kept aside, without their bodies."""
    m = dead_letters.c
    rows = connection.execute(
        select(m.id, m.queue, m.reason, m.size, m.received_at, *_REPLAY)
        .where(m.id > (marker or 0))
        .order_by(m.id)
        .limit(limit + 1)
    ).all()
    return {
        "dead_letters": [_received(row) for row in rows[:limit]],
        "next_marker": rows[limit - 1].id if len(rows) > limit else None,
    }


def show_dead_letter(connection: Connection, message_id: int) -> dict[str, Any]:
    """Return a message that was kept aside, with headers and body."""
    m = dead_letters.c
    row = connection.execute(
        select(m.id, m.queue, m.reason, m.headers, m.body, m.size, m.received_at, *_REPLAY).where(
            m.id == message_id
        )
    ).first()
    if row is None:
        raise NotFound(f"No message {message_id} was kept aside.", field="message_id")
    return _received(row)


def _received(row: Any) -> dict[str, Any]:
    times = {"received_at": moment(row.received_at), "replayed_at": moment(row.replayed_at)}
    return {**row._asdict(), **times}
