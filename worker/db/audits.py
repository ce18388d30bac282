"""Findings of audits, and the rows that decide what an audit may remove.

Deleting a row leaves a tombstone. An object on a backend is an orphan only if its row was in this
database and has been deleted, which the tombstone proves. Ids are never reused, so an orphan
stays an orphan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    true,
    tuple_,
    update,
)

from worker.db.core.engine import db_now, insert_into
from worker.db.tables.audits import audit_findings, tombstones
from worker.db.tables.main import (
    backends,
    operations,
    share_networks,
    share_servers,
    shares,
    snapshots,
)
from worker.model import (
    LIVE_STATES,
    OperationState,
    OwnerKind,
    ServerStatus,
    ShareStatus,
    SnapshotStatus,
)

_f = audit_findings.c
_t = tombstones.c
_KEY: Final = (_f.backend, _f.part, _f.problem, _f.kind, _f.thing)
_AT_ONCE: Final = 1000
"""Number of ids in one statement; SQLite accepts at most 32,766 values."""


class Problem(StrEnum):
    """How the database and a backend differ about one object."""

    ORPHAN = "orphan"
    """The object exists on the backend, and its row has been deleted."""
    MISSING = "missing"
    """The object has a row, and does not exist on the backend."""
    UNKNOWN = "unknown"
    """The object carries Sharewright's mark, with an id that this database never had: it belongs
    to another installation, or was created after the backup that the database was restored
    from."""


class RowState(StrEnum):
    """State of the row with an id, as far as an audit is concerned."""

    LIVE = "live"
    GONE = "gone"
    ELSEWHERE = "elsewhere"
    """The row has been deleted, and belonged to another backend."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference between the database and a backend, as the current audit sees it."""

    part: str
    problem: Problem
    kind: str
    thing: str
    owner_kind: OwnerKind
    owner_id: str
    created_at: float | None = None


def add_tombstone(connection: Connection, kind: OwnerKind, object_id: str) -> None:
    """Add a tombstone for a row that is about to be deleted; without such a row, add nothing."""
    source: Select[Any]
    match kind:
        case OwnerKind.SHARE:
            source = select(shares.c.backend).where(shares.c.id == object_id)
        case OwnerKind.SNAPSHOT:
            of_share = snapshots.c.share_id == shares.c.id
            source = select(shares.c.backend).join(snapshots, of_share)
            source = source.where(snapshots.c.id == object_id)
        case OwnerKind.SHARE_SERVER:
            source = select(share_servers.c.backend).where(share_servers.c.id == object_id)
        case OwnerKind.SHARE_NETWORK:
            source = select(literal("").label("backend")).where(
                exists().where(share_networks.c.id == object_id)
            )
    backend = source.subquery().c.backend
    connection.execute(
        insert_into(connection, tombstones)
        .from_select(
            ["kind", "id", "backend", "gone_at"],
            select(literal(str(kind)), literal(object_id), backend, db_now()).where(true()),
        )
        .on_conflict_do_nothing()
    )


def forget_old(connection: Connection, older_than: float, limit: int) -> int:
    """Delete tombstones older than ``older_than`` seconds that no finding needs; return how many.

    At most ``limit`` are deleted.
    """
    left = exists().where(_f.owner_id == _t.id)
    old = select(_t.kind, _t.id).where(_t.gone_at < db_now() - older_than, ~left).limit(limit)
    return connection.execute(delete(tombstones).where(tuple_(_t.kind, _t.id).in_(old))).rowcount


def standings(
    connection: Connection, backend: str, kind: OwnerKind, ids: Iterable[str]
) -> dict[str, RowState]:
    """Return the state of each id's row: live, or deleted from this or from another backend.

    The row of a share or snapshot that could not be created, and was undone, is kept for its owner
    to read. It does not count as live, because nothing exists on the backend; neither does the row
    of a share server that could not be built. Objects of a share network count as live while a
    share server on it has a row.
    """
    found: dict[str, RowState] = {}
    wanted = sorted(set(ids))
    for first in range(0, len(wanted), _AT_ONCE):
        some = wanted[first : first + _AT_ONCE]
        for row in connection.execute(_rows(kind, some)):
            mine = row.backend in {"", backend}
            gone = RowState.GONE if mine else RowState.ELSEWHERE
            found[row.id] = RowState.LIVE if row.is_live else gone
        for row in connection.execute(
            select(_t.id, _t.backend).where(_t.kind == str(kind), _t.id.in_(some))
        ):
            mine = row.backend in {"", backend}
            found.setdefault(row.id, RowState.GONE if mine else RowState.ELSEWHERE)
        for one in some:
            found.setdefault(one, RowState.UNKNOWN)
    return found


def is_undone() -> ColumnElement[bool]:
    """Return the condition that a share server could not be built and only its row is left."""
    v = share_servers.c
    return and_(v.status == ServerStatus.ERROR.value, v.deleter_id.is_(None))


def _rows(kind: OwnerKind, ids: Sequence[str]) -> Select[Any]:
    match kind:
        case OwnerKind.SHARE:
            s = shares.c
            kept = or_(s.status != ShareStatus.ERROR.value, s.allocated_gib > 0)
            return select(s.id, s.backend, kept.label("is_live")).where(s.id.in_(ids))
        case OwnerKind.SNAPSHOT:
            n, o = snapshots.c, operations.c
            unfinished = [*LIVE_STATES, OperationState.PENDING, OperationState.COMPENSATION_FAILED]
            in_hand = exists().where(
                o.resource_kind == "share",
                o.resource_id == n.share_id,
                o.state.in_([str(state) for state in unfinished]),
            )
            kept = or_(n.status != SnapshotStatus.ERROR.value, in_hand)
            return (
                select(n.id, shares.c.backend, kept.label("is_live"))
                .join(shares, shares.c.id == n.share_id)
                .where(n.id.in_(ids))
            )
        case OwnerKind.SHARE_SERVER:
            v = share_servers.c
            return select(v.id, v.backend, (~is_undone()).label("is_live")).where(v.id.in_(ids))
        case OwnerKind.SHARE_NETWORK:
            w = share_networks.c
            used = exists().where(share_servers.c.share_network_id == w.id, ~is_undone())
            return select(w.id, literal("").label("backend"), used.label("is_live")).where(
                w.id.in_(ids)
            )


def expected(connection: Connection, backend: str, kind: OwnerKind) -> set[str]:
    """Return the ids of a backend's rows for which an object must exist on the backend."""
    match kind:
        case OwnerKind.SHARE:
            steady = (ShareStatus.AVAILABLE.value, ShareStatus.EXTENDING.value)
            rows = select(shares.c.id).where(
                shares.c.backend == backend, shares.c.status.in_(steady)
            )
        case OwnerKind.SNAPSHOT:
            rows = (
                select(snapshots.c.id)
                .join(shares, shares.c.id == snapshots.c.share_id)
                .where(
                    shares.c.backend == backend,
                    snapshots.c.status == SnapshotStatus.AVAILABLE.value,
                )
            )
        case _:
            rows = select(share_servers.c.id).where(
                share_servers.c.backend == backend, share_servers.c.status == "active"
            )
    return set(connection.execute(rows).scalars())


def note(
    connection: Connection, backend: str, audit_targets: Sequence[str], found: Sequence[Finding]
) -> None:
    """Store the findings of an audit, and delete earlier ones that it did not repeat.

    ``audit_targets`` are the drivers and helpers that could be listed; findings of others stay.
    """
    for finding in found:
        values = {
            "problem": str(finding.problem),
            "owner_kind": str(finding.owner_kind),
            "owner_id": finding.owner_id,
            "created_at": finding.created_at,
        }
        connection.execute(
            insert_into(connection, audit_findings)
            .values(
                backend=backend,
                part=finding.part,
                kind=finding.kind,
                thing=finding.thing,
                times=1,
                first_seen=db_now(),
                last_seen=db_now(),
                **values,
            )
            .on_conflict_do_update(
                index_elements=list(_KEY),
                set_={"times": _f.times + 1, "last_seen": db_now(), **values},
            )
        )
    seen = {(one.part, str(one.problem), one.kind, one.thing) for one in found}
    known = select(audit_findings).where(_f.backend == backend, _f.part.in_(audit_targets))
    for row in connection.execute(known).all():
        if (row.part, row.problem, row.kind, row.thing) not in seen:
            connection.execute(delete(audit_findings).where(_same(row)))


def removable(connection: Connection, backend: str, grace: float) -> list[Row[Any]]:
    """Return orphans that at least two audits saw and that are older than ``grace`` seconds."""
    return list(
        connection.execute(
            select(audit_findings)
            .where(
                _f.backend == backend,
                _f.problem == Problem.ORPHAN.value,
                _f.times > 1,
                or_(_f.first_seen < db_now() - grace, _f.created_at < db_now() - grace),
            )
            .order_by(*_KEY)
        )
    )


def has_orphan(connection: Connection, backend: str, part: str, like: Row[Any]) -> bool:
    """Tell whether a driver or helper has an orphan with the same owner as another finding."""
    found = select(_f.thing).where(
        _f.backend == backend,
        _f.part == part,
        _f.problem == Problem.ORPHAN.value,
        _f.owner_kind == like.owner_kind,
        _f.owner_id == like.owner_id,
    )
    return connection.execute(found.limit(1)).first() is not None


def removed(connection: Connection, row: Row[Any]) -> None:
    """Delete the finding of an orphan that was removed; if it still exists, it is found anew."""
    connection.execute(delete(audit_findings).where(_same(row)))


def not_removed(connection: Connection, row: Row[Any], reason: str) -> None:
    """Store the reason why an orphan could not be removed."""
    connection.execute(update(audit_findings).where(_same(row)).values(error=reason))


def counts(connection: Connection, backend: str) -> Mapping[str, int]:
    """Return the number of a backend's findings, by problem."""
    rows = connection.execute(
        select(_f.problem, func.count().label("number"))
        .where(_f.backend == backend)
        .group_by(_f.problem)
    )
    return {row.problem: row.number for row in rows}


def due(connection: Connection, interval: float) -> list[str]:
    """Return the backends due for their periodic audit, each to one reconciler only.

    A backend that this function sees for the first time is due after one interval, not at once.
    """
    b = backends.c
    connection.execute(
        update(backends).where(b.audit_due_at.is_(None)).values(audit_due_at=db_now() + interval)
    )
    rows = connection.execute(
        update(backends)
        .where(b.audit_due_at < db_now())
        .values(audit_due_at=db_now() + interval)
        .returning(b.name)
    )
    return sorted(rows.scalars())


def _same(row: Row[Any]) -> ColumnElement[bool]:
    return and_(*(column == getattr(row, column.key) for column in _KEY))
