"""Overdue operations: how the reconciler finds them, and how it takes them up again.

It is told the versions of sagas that its release knows, and leaves all others alone: a newer
release's reconciler takes those up, and each re-drive would make that one's messages stale.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, func, select, tuple_, update

from worker.db.core.engine import db_now
from worker.db.operations.store import publish_all
from worker.db.operations.values import COLUMNS, Dispatch, Operation, dispatch_of, operation_of
from worker.db.tables.main import operations
from worker.model import Phase

_o = operations.c


Versions = Sequence[tuple[str, int]]
"""Names and versions of sagas."""


def due(
    connection: Connection, phases: Sequence[Phase], limit: int, *, known: Versions
) -> list[Operation]:
    """Return operations whose deadline has passed, the longest overdue first."""
    rows = connection.execute(
        select(*COLUMNS)
        .where(
            _o.due_at < db_now(),
            _o.phase.in_([phase.value for phase in phases]),
            tuple_(_o.saga, _o.saga_version).in_(known),
        )
        .order_by(_o.due_at)
        .limit(limit)
    )
    return [operation_of(row) for row in rows]


def unknown(connection: Connection, known: Versions) -> list[tuple[str, int, int]]:
    """Return the sagas of other releases that are overdue: name, version, how many operations."""
    rows = connection.execute(
        select(_o.saga, _o.saga_version, func.count())
        .where(_o.due_at < db_now(), tuple_(_o.saga, _o.saga_version).not_in(known))
        .group_by(_o.saga, _o.saga_version)
        .order_by(_o.saga, _o.saga_version)
    )
    return [tuple(row) for row in rows]


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
