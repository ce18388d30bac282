"""Recovery of overdue operations: how the reconciler finds them and publishes them again.

A reconciler passes the versions of sagas that its release knows, and all other operations are left
alone. The reconcilers of a newer release recover those, and publishing them here too would make
the newer release's messages stale.

Every query returns operations of each queue, so that thousands of overdue operations of one worker
group that is down do not hide those of the others.
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
"""Pairs of a saga's name and version."""


def due(
    connection: Connection, phases: Sequence[Phase], limit: int, *, known: Versions
) -> list[Operation]:
    """Return up to ``limit`` overdue operations, taking turns between queues, oldest first."""
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
    """Progress of a queue's workers: all messages queued before these times have been claimed.

    ``first`` is for the first steps of operations, ``later`` for all others. Later steps have a
    higher priority, so a first step is claimed only when no later one is in the queue. Both are
    seconds since the epoch.
    """

    first: float = 0.0
    later: float = 0.0

    def and_then(self, other: Claimed) -> Claimed:
        """Return the progress that both together show."""
        return Claimed(max(self.first, other.first), max(self.later, other.later))

    @property
    def lost(self) -> ColumnElement[bool]:
        """Condition that a queued message is lost: one published after it has been claimed."""
        return _o.queued_at < case((_is_first(), self.first), else_=self.later)


def _is_first() -> ColumnElement[bool]:
    return and_(_o.position == 0, not_(_o.undoing))


def claimed(connection: Connection, *, strict_priorities: bool) -> dict[str, Claimed]:
    """Return the progress of each queue's workers, derived from the steps that are running.

    Without ``strict_priorities`` the broker takes priorities as a hint only, and a later step may
    wait behind a first one.
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
    """Return the condition that an overdue message is lost; None for a queue that is empty."""
    return true() if seen is None else seen.lost


def is_old(limit: float | None) -> ColumnElement[bool]:
    """Return the condition that a message was queued more than ``limit`` seconds ago."""
    return false() if limit is None else _o.queued_at < db_now() - limit


def lost(
    connection: Connection, queue: str, lost: ColumnElement[bool], limit: int, *, known: Versions
) -> list[Operation]:
    """Return operations of a queue that have lost their message, later steps before first ones."""
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
    """Postpone the deadline of a queue's messages that are not lost; return how many."""
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
    """Return pairs of backend and queue to which the overdue messages were sent."""
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
    """Move a backend's overdue operations to another queue, since the old one may be unread."""
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
    """Return the backends that live operations or share servers use and that are not configured."""
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
    """Count overdue operations of unknown sagas; return name, version and number of each."""
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
    """Give overdue operations a new dispatch number and deadline; return messages to publish.

    An operation that another process has changed meanwhile is left out. A wait that has ended is
    not counted as a re-drive.
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
                        # A process that has changed it meanwhile has moved its deadline too.
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
    """Shorten deadlines that are too far ahead; return how many.

    They occur when the database's clock was set back: a dead worker's lease would last until the
    clock has caught up. A lease does not end at once but after its usual time, so that a living
    worker can renew it. Twice the usual time is allowed, because other processes may have another
    configuration.
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
