"""Queries of operations and their steps."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    Connection,
    Row,
    or_,
    select,
)

from scheduler.queries.base import all_projects, is_administrator, missing, page
from scheduler.requests.operations import ListOperations, OperationOnly
from worker.config import Config
from worker.db import views
from worker.db.core.engine import db_now
from worker.db.tables.main import (
    operation_aliases,
    operation_steps,
    operations,
)
from worker.db.views import View
from worker.errors import ObjectKind
from worker.messaging.queues import group_of
from worker.model import OperationState

_OF_TENANTS: Final = (views.OPERATION, views.STEP)
_OF_ADMINISTRATORS: Final = (views.OPERATION_FOR_ADMINISTRATORS, views.STEP_FOR_ADMINISTRATORS)


def show_operation(
    connection: Connection, request: OperationOnly, _config: Config
) -> dict[str, Any]:
    """Return an operation with its timeline: every action that has ended, and its outcome.

    If its request was sent again under another id with the same idempotency key, each of the ids
    finds it.
    """
    o, a = operations.c, operation_aliases.c
    administrator = is_administrator(request.context)
    view, of_step = _OF_ADMINISTRATORS if administrator else _OF_TENANTS
    alias = select(a.operation_id).where(a.id == request.operation_id)
    row = connection.execute(
        select(*view.columns)
        .where(
            or_(o.id == request.operation_id, o.id == alias.scalar_subquery()),
            o.project_id == request.context.project_id,
        )
        .limit(1)
    ).first()
    if row is None:
        raise missing(ObjectKind.OPERATION, request.operation_id, "operation_id")
    steps = connection.execute(
        select(*of_step.columns)
        .where(operation_steps.c.operation_id == row.id)
        .order_by(operation_steps.c.seq)
    )
    return {**_shown(view, row), "steps": [_step(of_step, step) for step in steps]}


def _shown(view: View, row: Row[Any]) -> dict[str, Any]:
    """Return an operation's document, for administrators with the worker group of its queue."""
    document = view(row)
    return {**document, "group": group_of(document["queue"])} if "queue" in document else document


def _step(view: View, row: Row[Any]) -> dict[str, Any]:
    return {**view(row), "seconds": round(row.finished_at - row.started_at, 3)}


def list_operations(
    connection: Connection, request: ListOperations, _config: Config
) -> dict[str, Any]:
    """Return a page of operations, without their timelines."""
    o = operations.c
    filters = request.model_dump(mode="json", include={"state", "verb", "resource_id"})
    conditions = [o[name] == value for name, value in filters.items() if value is not None]
    if request.live:
        conditions.append(o.state.in_([one.value for one in OperationState if not one.has_ended]))
    if request.older_than is not None:
        conditions.append(o.accepted_at < db_now() - request.older_than)
    everybodys = all_projects(request)
    view, _ = _OF_ADMINISTRATORS if is_administrator(request.context) else _OF_TENANTS
    rows, marker = page(
        connection,
        select(*view.columns).where(*conditions),
        order=(o.seq,),
        marker_id=o.id,
        request=request,
        visible=None if everybodys else o.project_id == request.context.project_id,
        newest_first=request.newest_first,
    )
    return {"operations": [_shown(view, row) for row in rows], "next_marker": marker}
