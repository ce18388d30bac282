"""Messages that no task could be run for, kept where an operator can list them."""

from __future__ import annotations

from sqlalchemy import Connection

from worker.db.engine import db_now, insert_into
from worker.db.tables import poison_messages
from worker.poison import PoisonMessage


def keep(connection: Connection, poison: PoisonMessage) -> None:
    """Keep a message; one that was delivered twice is kept once."""
    connection.execute(
        insert_into(connection, poison_messages)
        .values(
            fingerprint=poison.fingerprint,
            queue=poison.queue[:255],
            reason=poison.reason,
            headers=dict(poison.headers),
            body=poison.body,
            size=poison.size,
            received_at=db_now(),
        )
        .on_conflict_do_nothing()
    )
