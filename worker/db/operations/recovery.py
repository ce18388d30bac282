"""Overdue operations: how the reconciler finds them, and how it takes them up again.

It is told the versions of sagas that its release knows, and leaves all others alone: a newer
release's reconciler takes those up, and each re-drive would make that one's messages stale.

Each queue has its share of what is found, so that a worker group which is down, with thousands of
overdue operations, keeps nobody else's from being found.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    case,
    false,
    func,
    not_,
    select,
    true,
    tuple_,
    union,
    update,
)

from worker.db.core.engine import db_now
from worker.db.operations.store import locked, publish_all
from worker.db.operations.values import COLUMNS, Dispatch, Operation, dispatch_of, operation_of
from worker.db.tables.main import operations, share_servers
from worker.model import Phase

_o = operations.c

Versions = Sequence[tuple[str, int]]
"""Names and versions of sagas."""


def due(
    connection: Connection, phases: Sequence[Phase], limit: int, *, known: Versions
) -> list[Operation]:
    """Return operations whose deadline has passed, the longest overdue of each queue first."""
    overdue = and_(
        _o.due_at < db_now(),
        _o.phase.in_([phase.value for phase in phases]),
        tuple_(_o.saga, _o.saga_version).in_(known),
    )
    ranked = (
        select(
            _o.seq.label("seq"),
            func.row_number().over(partition_by=_o.queue, order_by=_o.due_at).label("rank"),
        )
        .where(overdue)
        .subquery()
    )
    rows = connection.execute(
        select(*COLUMNS)
        .join(ranked, ranked.c.seq == _o.seq)
        .order_by(ranked.c.rank, _o.due_at)
        .limit(limit)
    )
    return [operation_of(row) for row in rows]


def overdue_queues(connection: Connection, known: Versions) -> list[str]:
    """Return the queues that have overdue messages."""
    return list(connection.execute(select(_o.queue).where(_overdue(known)).distinct()).scalars())


def _overdue(known: Versions) -> ColumnElement[bool]:
    return and_(
        _o.phase == Phase.QUEUED.value,
        _o.due_at < db_now(),
        tuple_(_o.saga, _o.saga_version).in_(known),
    )


@dataclass(frozen=True, slots=True)
class Claimed:
    """How far the workers of a queue have come: what was queued before these times, was claimed.

    ``first`` is for the first steps of operations, ``later`` for those that follow: they have a
    higher priority, so a first step is claimed only when no later one is in the queue.
    """

    first: float = 0.0
    later: float = 0.0

    def and_then(self, other: Claimed) -> Claimed:
        """Return what both say."""
        return Claimed(max(self.first, other.first), max(self.later, other.later))

    @property
    def lost(self) -> ColumnElement[bool]:
        """That a queued message is lost: what came after it was claimed."""
        return _o.queued_at < case((_is_first(), self.first), else_=self.later)


def _is_first() -> ColumnElement[bool]:
    return and_(_o.position == 0, not_(_o.undoing))


def claimed(connection: Connection, *, strict_priorities: bool) -> dict[str, Claimed]:
    """Return how far the workers of each queue have come, as seen from the steps in hand.

    Where the broker takes priorities as a hint only, a later step may wait behind a first one.
    """
    is_first = _is_first().label("is_first")
    rows = connection.execute(
        select(_o.queue, is_first, func.max(_o.queued_at), func.max(_o.claimed_at))
        # Leases that are valid: few, and found by the index of deadlines.
        .where(_o.phase == Phase.LEASED.value, _o.due_at > db_now())
        .group_by(_o.queue, is_first)
    )
    found: dict[str, Claimed] = {}
    for queue, first, queued_at, claimed_at in rows:
        if not first:
            seen = Claimed(later=queued_at)
        else:
            seen = Claimed(queued_at, claimed_at if strict_priorities else queued_at)
        found[queue] = found.get(queue, Claimed()).and_then(seen)
    return found


def is_lost(seen: Claimed | None) -> ColumnElement[bool]:
    """That an overdue message is lost; None: the queue is empty, so every one is."""
    return true() if seen is None else seen.lost


def is_old(limit: float | None) -> ColumnElement[bool]:
    """That a message was queued longer ago than a limit, if there is one."""
    return false() if limit is None else _o.queued_at < db_now() - limit


def lost(
    connection: Connection, queue: str, lost: ColumnElement[bool], limit: int, *, known: Versions
) -> list[Operation]:
    """Return operations of a queue whose message is lost, those that were begun first."""
    rows = connection.execute(
        select(*COLUMNS)
        .where(_overdue(known), _o.queue == queue, lost)
        .order_by(_is_first(), _o.due_at)
        .limit(limit)
    )
    return [operation_of(row) for row in rows]


def postpone(
    connection: Connection,
    queue: str,
    lost: ColumnElement[bool],
    *,
    republish_after: float,
    known: Versions,
) -> int:
    """Look later at a queue's messages that only wait for their turn; return how many."""
    changed = connection.execute(
        update(operations)
        .where(
            _o.seq.in_(
                locked(
                    select(_o.seq).where(_overdue(known), _o.queue == queue, not_(lost)),
                    skip_locked=True,
                )
            )
        )
        .values(due_at=db_now() + republish_after)
        .returning(_o.seq)
    )
    return len(changed.all())


def routes(connection: Connection, known: Versions) -> list[tuple[str, str]]:
    """Return the queues of overdue operations, each with a backend whose steps are sent there."""
    rows = connection.execute(
        select(_o.queue, _o.backend)
        .where(
            _o.due_at < db_now(),
            _o.backend.is_not(None),
            tuple_(_o.saga, _o.saga_version).in_(known),
        )
        .distinct()
    )
    return [(queue, backend) for queue, backend in rows]


def reroute(
    connection: Connection,
    backend: str,
    *,
    old: str,
    new: str,
    limit: int,
    republish_after: float,
    known: Versions,
) -> list[Dispatch]:
    """Send a backend's overdue operations to another queue: nobody may read the old one."""
    overdue = (
        select(_o.seq)
        .where(
            _o.due_at < db_now(),
            _o.queue == old,
            _o.backend == backend,
            tuple_(_o.saga, _o.saga_version).in_(known),
        )
        .order_by(_o.seq)
        .limit(limit)
    )
    rows = connection.execute(
        publish_all(republish_after)
        .where(_o.seq.in_(locked(overdue, skip_locked=True)))
        .values(queue=new)
    )
    return [dispatch_of(row) for row in rows]


def orphaned_backends(connection: Connection, configured: Iterable[str]) -> list[str]:
    """Return the backends that live operations or share servers refer to and nobody configures."""
    names = sorted(configured)
    servers = share_servers.c
    rows = connection.execute(
        union(
            select(_o.backend).where(_o.due_at.is_not(None), _o.backend.not_in(names)),
            select(servers.backend).where(servers.backend.not_in(names)),
        )
    )
    return sorted(rows.scalars())


def unknown(connection: Connection, known: Versions) -> list[tuple[str, int, int]]:
    """Return the sagas of other releases that are overdue: name, version, how many operations."""
    rows = connection.execute(
        select(_o.saga, _o.saga_version, func.count())
        .where(_o.due_at < db_now(), tuple_(_o.saga, _o.saga_version).not_in(known))
        .group_by(_o.saga, _o.saga_version)
        .order_by(_o.saga, _o.saga_version)
    )
    return [(saga, version, count) for saga, version, count in rows]


def redrive(
    connection: Connection, overdue: Sequence[Operation], *, republish_after: float
) -> list[Dispatch]:
    """Take up again what is overdue: a new dispatch number and deadline, then publish.

    A wait that is over is no re-drive. Whoever else moved one of them meanwhile wins: it is left
    out of the answer.
    """
    if not overdue:
        return []
    waited = _o.phase == Phase.WAITING.value
    rows = connection.execute(
        publish_all(republish_after)
        .where(
            _o.seq.in_(
                locked(
                    select(_o.seq).where(
                        _o.seq.in_([one.seq for one in overdue]),
                        # Whoever moved it meanwhile moved its deadline too.
                        _o.due_at < db_now(),
                    ),
                    skip_locked=True,
                )
            )
        )
        .values(redrives=_o.redrives + case((waited, 0), else_=1))
    )
    return [dispatch_of(row) for row in rows]


def cap_deadlines(connection: Connection, *, lease: float, longest_pause: float) -> int:
    """Bring deadlines that are further ahead than they can be back; return how many.

    The database's clock was put back: a dead worker's lease would last until it has caught up.
    A lease is not void at once but ends after its usual time, so that a worker that lives renews
    it. The time is allowed twice, for processes with another configuration.
    """
    limits = {Phase.LEASED: lease, Phase.QUEUED: lease * 1.25, Phase.WAITING: longest_pause}
    capped = 0
    for phase, limit in limits.items():
        # Subqueries are evaluated once, so that rows are found by the index of deadlines.
        latest = select(db_now() + 2 * limit).scalar_subquery()
        too_far = select(_o.seq).where(_o.phase == phase.value, _o.due_at > latest)
        changed = connection.execute(
            update(operations)
            .where(_o.seq.in_(locked(too_far, skip_locked=True)))
            .values(due_at=db_now() + limit)
            .returning(_o.seq)
        )
        capped += len(changed.all())
    return capped
