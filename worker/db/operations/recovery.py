"""What is overdue: what the reconciler asks of the journal, and how it takes it up again."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, select, update

from worker.db.core.engine import db_now
from worker.db.operations.store import publish_all
from worker.db.operations.values import COLUMNS, Dispatch, Operation, dispatch_of, operation_of
from worker.db.tables.main import operations
from worker.model import Phase

_o = operations.c


def due(connection: Connection, phases: Sequence[Phase], limit: int) -> list[Operation]:
    """Return operations whose deadline has passed, the longest overdue first."""
    rows = connection.execute(
        select(*COLUMNS)
        .where(
            _o.due_at < db_now(),
            _o.phase.in_([phase.value for phase in phases]),
        )
        .order_by(_o.due_at)
        .limit(limit)
    )
    return [operation_of(row) for row in rows]


def redrive(
    connection: Connection, recovery: Sequence[Operation], *, republish_after: float
) -> list[Dispatch]:
    """Take up again what is overdue: a new dispatch number and deadline, then publish.

    Whoever else moved one of them meanwhile wins: it is left out of the answer.
    """
    if not recovery:
        return []
    rows = connection.execute(
        publish_all(republish_after)
        .where(
            _o.seq.in_([one.seq for one in recovery]),
            _o.due_at < db_now(),  # whoever moved it meanwhile moved its deadline too
        )
        .values(redrives=_o.redrives + 1)
    )
    return [dispatch_of(row) for row in rows]


def postpone(connection: Connection, queue: str, *, limit: float, republish_after: float) -> int:
    """Give messages that are only waiting in a deep queue more time; return how many."""
    changed = connection.execute(
        update(operations)
        .where(
            _o.queue == queue,
            _o.phase == Phase.QUEUED.value,
            _o.due_at < db_now(),
            _o.queued_at > db_now() - limit,
        )
        .values(due_at=db_now() + republish_after)
    )
    return changed.rowcount
