"""Queries of dead letters, for operators."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Connection, Row, Select, select

from worker.db import views
from worker.db.tables.main import dead_letters
from worker.db.views import View
from worker.errors import NotFound

_REPLAYABLE: Final = dead_letters.c.message.is_not(None).label("replayable")


def list_dead_letters(connection: Connection, limit: int, marker: int | None) -> dict[str, Any]:
    """Return a page of dead letters, without their bodies."""
    statement: Select[Any] = (
        select(*views.DEAD_LETTER.columns, _REPLAYABLE)
        .where(dead_letters.c.id > (marker or 0))
        .order_by(dead_letters.c.id)
        .limit(limit + 1)
    )
    rows = connection.execute(statement).all()
    return {
        "dead_letters": [_shown(views.DEAD_LETTER, row) for row in rows[:limit]],
        "next_marker": rows[limit - 1].id if len(rows) > limit else None,
    }


def show_dead_letter(connection: Connection, message_id: int) -> dict[str, Any]:
    """Return a dead letter, with headers and body."""
    statement: Select[Any] = select(*views.DEAD_LETTER_WITH_BODY.columns, _REPLAYABLE)
    row = connection.execute(statement.where(dead_letters.c.id == message_id)).first()
    if row is None:
        raise NotFound(f"No message {message_id} was kept aside.", field="message_id")
    return _shown(views.DEAD_LETTER_WITH_BODY, row)


def _shown(view: View, row: Row[Any]) -> dict[str, Any]:
    return {**view(row), "replayable": row.replayable}
