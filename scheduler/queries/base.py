"""Common parts of all queries: visibility, pages, "not found"."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    Table,
    or_,
    select,
    tuple_,
)

from scheduler.requests.base import Context
from worker.config import Config
from worker.db.views import View
from worker.errors import Forbidden, InvalidRequest, NotFound, ObjectKind

Read = Callable[[Connection, Any, Config], dict[str, Any]]
"""Returns the answer to a validated payload; raises :class:`~worker.errors.Refused`."""

ADMIN_ROLE: Final = "admin"


def is_administrator(context: Context) -> bool:
    """Tell whether a request's context has the administrators' role."""
    return ADMIN_ROLE in context.roles


def all_projects(request: Any) -> bool:
    """Tell whether a list covers all projects; raise Forbidden unless an administrator asks."""
    if request.all_projects and not is_administrator(request.context):
        raise Forbidden(
            f"Only the role {ADMIN_ROLE!r} may list the objects of all projects.",
            field="all_projects",
        )
    return bool(request.all_projects)


def mine(table: Table, context: Context) -> ColumnElement[bool]:
    """Return the condition for rows that a project may see: its own, and public ones."""
    own = table.c.project_id == context.project_id
    return or_(own, table.c.is_public) if "is_public" in table.c else own


def missing(kind: ObjectKind, object_id: str, field: str) -> NotFound:
    """Return the error for an id that no object of the project has."""
    return NotFound(
        f"There is no {kind.words} {object_id} in this project.",
        object=kind.ref(object_id),
        field=field,
    )


def show(
    connection: Connection, view: View, kind: ObjectKind, context: Context, object_id: str
) -> dict[str, Any]:
    """Return the document of an object that the project may see, or raise NotFound."""
    row = connection.execute(
        select(*view.columns).where(view.table.c.id == object_id, mine(view.table, context))
    ).first()
    if row is None:
        raise missing(kind, object_id, f"{kind}_id")
    return view(row)


def page(
    connection: Connection,
    statement: Select[Any],
    *,
    order: tuple[ColumnElement[Any], ...],
    marker_id: ColumnElement[Any],
    request: Any,
    visible: ColumnElement[bool] | None,
    newest_first: bool = False,
) -> tuple[Sequence[Row[Any]], str | None]:
    """Return the rows after the marker, and the next page's marker or None."""
    if visible is not None:
        statement = statement.where(visible)
    if request.marker is not None:
        position = select(*order).where(marker_id == request.marker)
        if visible is not None:
            position = position.where(visible)
        after = connection.execute(position).first()
        if after is None:
            raise InvalidRequest(
                f"The marker {request.marker} is no longer an object of this list; begin again "
                f"without a marker.",
                field="marker",
            )
        here, there = tuple_(*order), tuple_(*after)
        statement = statement.where(here < there if newest_first else here > there)
    direction = [column.desc() if newest_first else column for column in order]
    rows = connection.execute(statement.order_by(*direction).limit(request.limit + 1)).all()
    page = rows[: request.limit]
    more = len(rows) > request.limit
    return page, str(getattr(page[-1], marker_id.key or "id")) if more else None


def list_rows(
    connection: Connection,
    view: View,
    plural: str,
    request: Any,
    filters: Mapping[str, Any],
    *conditions: ColumnElement[bool],
) -> dict[str, Any]:
    """Return a page of objects that match the filters, under ``plural``, and the next marker."""
    table = view.table
    visible = None if all_projects(request) else mine(table, request.context)
    statement = select(*view.columns).where(
        *(table.c[name] == value for name, value in filters.items() if value is not None),
        *conditions,
    )
    rows, marker = page(
        connection,
        statement,
        order=(table.c.created_at, table.c.id),
        marker_id=table.c.id,
        request=request,
        visible=visible,
    )
    return {plural: [view(row) for row in rows], "next_marker": marker}
