"""Delete operations that ended long ago, with their timelines and aliases."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, Select, and_, delete, select

from worker.db.core.engine import db_now
from worker.db.tables.main import backends, operation_aliases, operation_steps, operations

_o = operations.c


def _old(keep: float) -> ColumnElement[bool]:
    # A subquery is evaluated once, so PostgreSQL finds the rows by their index. Without it the
    # clock would be read for every row.
    before = select(db_now() - keep).scalar_subquery()
    return and_(_o.finished_at < before, _o.phase.is_(None))


def has_old(connection: Connection, keep: float) -> bool:
    """Tell whether any operation ended more than ``keep`` seconds ago."""
    oldest = (
        select(_o.finished_at)
        .where(_o.finished_at.is_not(None), _o.phase.is_(None))
        .order_by(_o.finished_at)
        .limit(1)
        .scalar_subquery()
    )
    return bool(connection.execute(select(oldest < db_now() - keep)).scalar_one())


def forget_old(connection: Connection, keep: float, limit: int) -> int:
    """Delete at most ``limit`` operations that ended more than ``keep`` seconds ago, oldest first.

    Returns how many. Rows that another transaction is deleting are skipped.
    """
    old = select(_o.seq, _o.id).where(_old(keep)).order_by(_o.finished_at).limit(limit)
    return _delete(connection, old)


def forget_old_audits(connection: Connection, verb: str, keep: float, limit: int) -> int:
    """Delete audits of backends as :func:`forget_old` does; their findings stay.

    ``verb`` is the audits' verb.
    """
    # Found by the index of resources: all other operations are kept for longer than audits.
    old = (
        select(_o.seq, _o.id)
        .join(backends, backends.c.name == _o.resource_id)
        .where(_o.verb == verb, _old(keep))
        .limit(limit)
    )
    return _delete(connection, old)


def _delete(connection: Connection, old: Select[tuple[int, str]]) -> int:
    rows = connection.execute(old.with_for_update(skip_locked=True, of=operations)).all()
    if not rows:
        return 0
    ids = [row.id for row in rows]
    connection.execute(delete(operation_steps).where(operation_steps.c.operation_id.in_(ids)))
    connection.execute(delete(operation_aliases).where(operation_aliases.c.operation_id.in_(ids)))
    connection.execute(delete(operations).where(_o.seq.in_([row.seq for row in rows])))
    return len(rows)
