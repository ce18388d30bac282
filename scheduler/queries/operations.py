"""Reading operations and their steps."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    Connection,
    Row,
    or_,
    select,
)

from scheduler.queries.base import all_projects, missing, page
from scheduler.requests.operations import ListOperations, OperationOnly
from worker.config import Config
from worker.db.documents import moment, shown
from worker.db.tables.main import (
    operation_aliases,
    operation_steps,
    operations,
)
from worker.errors import ObjectKind

# The payload is not among them: it may hold what a later verb must keep secret.
_OPERATION_COLUMNS: Final = tuple(
    operations.c[name]
    for name in (
        *("id", "project_id", "user_id", "request_id", "verb", "resource_kind", "resource_id"),
        *("backend", "state", "phase", "undoing", "task", "attempts", "waits_for", "redrives"),
        *("worker", "error", "result", "accepted_at", "finished_at"),
    )
)
_STEP_COLUMNS: Final = tuple(
    operation_steps.c[name]
    for name in ("task", "outcome", "attempt", "worker", "started_at", "finished_at", "message")
)


def show_operation(
    connection: Connection, request: OperationOnly, _config: Config
) -> dict[str, Any]:
    """Return an operation with its timeline: every act that ended so far, and how.

    A request that was sent again under another id, with the same idempotency key, is found by
    either.
    """
    o, a = operations.c, operation_aliases.c
    alias = select(a.operation_id).where(a.id == request.operation_id)
    row = connection.execute(
        select(*_OPERATION_COLUMNS)
        .where(
            or_(o.id == request.operation_id, o.id == alias.scalar_subquery()),
            o.project_id == request.context.project_id,
        )
        .limit(1)
    ).first()
    if row is None:
        raise missing(ObjectKind.OPERATION, request.operation_id, "operation_id")
    steps = connection.execute(
        select(*_STEP_COLUMNS)
        .where(operation_steps.c.operation_id == row.id)
        .order_by(operation_steps.c.seq)
    )
    return {**shown(row), "steps": [_step(step) for step in steps]}


def _step(row: Row[Any]) -> dict[str, Any]:
    return {
        **row._asdict(),
        "started_at": moment(row.started_at),
        "finished_at": moment(row.finished_at),
        "seconds": round(row.finished_at - row.started_at, 3),
    }


def list_operations(
    connection: Connection, request: ListOperations, _config: Config
) -> dict[str, Any]:
    """Return a page of operations, without their timelines, in the order of acceptance."""
    o = operations.c
    filters = request.model_dump(include={"state", "verb", "resource_id"})
    everybodys = all_projects(request)
    rows, marker = page(
        connection,
        select(*_OPERATION_COLUMNS).where(
            *(o[name] == value for name, value in filters.items() if value is not None)
        ),
        order=(o.seq,),
        marker_id=o.id,
        request=request,
        visible=None if everybodys else o.project_id == request.context.project_id,
    )
    return {"operations": [shown(row) for row in rows], "next_marker": marker}
