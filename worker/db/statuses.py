"""Rows by id, and changes of status that the transition tables of :mod:`worker.model` allow.

A change that is not allowed from the row's present status writes nothing and raises.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import (
    Connection,
    Row,
    Table,
    bindparam,
    select,
    update,
)

from worker.db.core.engine import db_now
from worker.db.core.prepared import Prepared
from worker.db.tables.main import (
    shares,
    snapshots,
)
from worker.errors import ErrorCode, Fatal, ObjectKind
from worker.model import (
    SHARE_TRANSITIONS,
    SNAPSHOT_TRANSITIONS,
    sources,
)


def by_id(table: Table) -> Prepared:
    """Return the prepared statement that selects a row by its id."""
    return Prepared(select(table).where(table.c.id == bindparam("object_id")))


def row_of(connection: Connection, by_id: Prepared, object_id: str, kind: ObjectKind) -> Row[Any]:
    """Return a row for a step; raise Fatal when the operation's object no longer exists."""
    row = by_id.first(connection, object_id=object_id)
    if row is None:
        raise gone(kind, object_id)
    return row


def gone(kind: ObjectKind, object_id: str) -> Fatal:
    """Return the error for an operation on an object that no longer exists."""
    return Fatal(
        f"The {kind.words} {object_id} does not exist any more.",
        object=kind.ref(object_id),
        code=ErrorCode.NOT_FOUND,
    )


_TRANSITIONS: Final[Mapping[Table, Mapping[tuple[Any, Any], str]]] = {
    shares: SHARE_TRANSITIONS,
    snapshots: SNAPSHOT_TRANSITIONS,
}


@functools.cache
def _moving(table: Table, status: StrEnum, names: tuple[str, ...]) -> Prepared:
    return Prepared(
        update(table)
        .where(
            table.c.id == bindparam("object_id"),
            table.c.status.in_(sources(_TRANSITIONS[table], status)),
        )
        .values(
            status=status.value,
            updated_at=db_now(),
            **{name: bindparam(f"new_{name}") for name in names},
        )
        .returning(*table.c)
    )


def moved(
    connection: Connection,
    table: Table,
    object_id: str,
    status: StrEnum,
    values: Mapping[str, Any],
) -> Row[Any] | None:
    """Change a row's status and ``values``; None, writing nothing, if that is not allowed."""
    return _moving(table, status, tuple(values)).first(
        connection,
        object_id=object_id,
        **{f"new_{name}": value for name, value in values.items()},
    )


def move(
    connection: Connection,
    table: Table,
    object_id: str,
    status: StrEnum,
    values: Mapping[str, Any],
) -> Row[Any]:
    """Change a row's status and ``values``; raise, writing nothing, if that is not allowed."""
    row = moved(connection, table, object_id, status, values)
    if row is None:
        kind = ObjectKind(table.name.removesuffix("s"))
        raise Fatal(
            f"The {kind} {object_id} cannot become {status} from where it is now.",
            object=kind.ref(object_id),
            code=ErrorCode.CONFLICT,
        )
    return row
