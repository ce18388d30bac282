"""What audits found, and what they may touch.

A row that goes leaves a tombstone: only what was made for a row that this database has had, and
which is no more, is an orphan. Ids are never used again, so an orphan never becomes anything else.
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
"""Ids in one statement; SQLite takes 32,766 values."""


class Problem(StrEnum):
    """What is wrong with a thing."""

    ORPHAN = "orphan"
    """It exists outside, and the row that it was made for is no more."""
    MISSING = "missing"
    """A row says that it exists, and it does not."""
    UNKNOWN = "unknown"
    """It bears a mark such as ours, with an id that this database does not know: another
    installation's, or from after the backup that the database was restored from."""


class RowState(StrEnum):
    """What the database says of a row's id."""

    LIVE = "live"
    GONE = "gone"
    ELSEWHERE = "elsewhere"
    """It is gone, and was another backend's."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, as an audit saw it just now."""

    part: str
    problem: Problem
    kind: str
    thing: str
    owner_kind: OwnerKind
    owner_id: str
    created_at: float | None = None


def add_tombstone(connection: Connection, kind: OwnerKind, object_id: str) -> None:
    """Leave a tombstone for a row that is about to be deleted; none is left where there is none."""
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
    """Forget tombstones after that many seconds, unless something is left; return how many."""
    left = exists().where(_f.owner_id == _t.id)
    old = select(_t.kind, _t.id).where(_t.gone_at < db_now() - older_than, ~left).limit(limit)
    return connection.execute(delete(tombstones).where(tuple_(_t.kind, _t.id).in_(old))).rowcount


def standings(
    connection: Connection, backend: str, kind: OwnerKind, ids: Iterable[str]
) -> dict[str, RowState]:
    """Say of each id whether its row is live; of one that is gone, whether it was this backend's.

    A share or snapshot whose create failed and was undone is gone outside, and its row is kept
    for its owner to read: it is not live; nor is that of a build which failed. A share network's
    things live as long as a share server on it has a row.
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
    """A condition: the row of a share server whose build failed, of which nothing else is left."""
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
    """Return the rows of a backend for which something must exist outside."""
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
    """Write what an audit found, and forget what it did not find any more.

    ``audited`` are the parts that could be listed; what is known of others stays as it is.
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
    """Return orphans that were seen twice and are older than the grace time."""
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
    """Whether a part is known to have left something of the same owner as another finding."""
    found = select(_f.thing).where(
        _f.backend == backend,
        _f.part == part,
        _f.problem == Problem.ORPHAN.value,
        _f.owner_kind == like.owner_kind,
        _f.owner_id == like.owner_id,
    )
    return connection.execute(found.limit(1)).first() is not None


def removed(connection: Connection, row: Row[Any]) -> None:
    """An orphan was removed: should it still be there, it is a new finding."""
    connection.execute(delete(audit_findings).where(_same(row)))


def not_removed(connection: Connection, row: Row[Any], reason: str) -> None:
    """Keep why an orphan could not be removed."""
    connection.execute(update(audit_findings).where(_same(row)).values(error=reason))


def counts(connection: Connection, backend: str) -> Mapping[str, int]:
    """How many findings a backend has, by problem."""
    rows = connection.execute(
        select(_f.problem, func.count().label("number"))
        .where(_f.backend == backend)
        .group_by(_f.problem)
    )
    return {row.problem: row.number for row in rows}


def due(connection: Connection, interval: float) -> list[str]:
    """Return backends whose periodic audit is due; each is asked for by one reconciler only.

    A backend that was never seen here is due after one interval, not at once.
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
