"""Prepared statements of :mod:`worker.db.operations.store`, for the path of every operation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Executable,
    Insert,
    bindparam,
    insert,
    or_,
    select,
    update,
)

from worker.db.core.engine import INSERTS, db_now
from worker.db.core.prepared import Prepared
from worker.db.operations.values import COLUMNS, DISPATCH_COLUMNS
from worker.db.tables.main import operation_steps, operations
from worker.model import LIVE_STATES, OperationState, Phase

_o = operations.c
_l = operation_steps.c
_LINE = ("operation_id", "task", "outcome", "attempt", "started_at", "message")
_LIVE = [str(state) for state in LIVE_STATES]

GIVEN: Mapping[str, Any] = {
    "user_id": "",
    "request_id": "",
    "idempotency_key": None,
    "backend": None,
    "queue": "",
    "task": "",
}
"""Defaults of the columns that an accepted operation may leave out."""
_VALUES = (
    *("id", "project_id", "verb", "resource_kind", "resource_id", "payload", "payload_digest"),
    *("saga", "saga_version", *GIVEN),
)
QUEUED: Mapping[str, Any] = {
    "phase": Phase.QUEUED.value,
    "queued_at": db_now(),
    "due_at": db_now() + bindparam("wait"),
}
"""The values of an operation whose message is about to be published."""


def _accepting(**values: Any) -> Prepared:
    def build(dialect: str) -> Insert:
        return (
            INSERTS[dialect](operations)
            .values(accepted_at=db_now(), **{name: bindparam(name) for name in _VALUES}, **values)
            .on_conflict_do_nothing()
            .returning(*DISPATCH_COLUMNS)
        )

    return Prepared(build)


ACCEPT_RUNNING = _accepting(state=OperationState.RUNNING.value, dispatch=1, **QUEUED)
ACCEPT_PENDING = _accepting(state=OperationState.PENDING.value)


LIVE_ONE = Prepared(
    select(_o.id, _o.verb)
    .where(
        _o.resource_kind == bindparam("kind"),
        _o.resource_id == bindparam("object_id"),
        _o.state.in_(_LIVE),
    )
    .with_for_update(read=True)
)


CLAIM = Prepared(
    update(operations)
    .where(
        _o.id == bindparam("operation_id"),
        _o.dispatch == bindparam("number"),
        _o.task == bindparam("action"),
        _o.phase == Phase.QUEUED.value,
    )
    .values(
        phase=Phase.LEASED.value,
        fence=_o.fence + 1,
        attempts=_o.attempts + 1,
        claimed_at=db_now(),
        due_at=db_now() + bindparam("lease"),
        worker=bindparam("holder"),
    )
    .returning(*COLUMNS)
)


def held(operation_id: Any, fence: Any) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions that an operation is leased under a fence."""
    return (_o.id == operation_id, _o.fence == fence, _o.phase == Phase.LEASED.value)


def _ours() -> tuple[ColumnElement[bool], ...]:
    return held(bindparam("held_id"), bindparam("held_fence"))


HOLD = Prepared(lambda _dialect: select(_o.seq).where(*_ours()).with_for_update())


RELEASED: Mapping[str, Any] = {
    "attempts": 0,
    "failures": 0,
    "failing_since": None,
    "redrives": 0,
    "waits_for": None,
    "waiting_since": None,
}


def _ending(values: Mapping[str, Any]) -> Prepared:
    """Build the fenced update that ends an action and adds it to the timeline.

    It does not change an operation that was cancelled while the action ran, unless
    ``cancelled_too``. On PostgreSQL it is one statement; SQLite cannot write in a common table
    expression.
    """
    heeded = or_(_o.cancel_reason.is_(None), bindparam("cancelled_too", type_=Boolean))

    def build(dialect: str) -> Executable:
        fenced = update(operations).where(*_ours(), heeded).values(values)
        if dialect == "sqlite":
            return fenced.returning(*DISPATCH_COLUMNS)
        written = fenced.returning(*DISPATCH_COLUMNS, _o.worker).cte("written")
        line = insert(operation_steps).from_select(
            [*_LINE, "finished_at", "worker"],
            select(*(bindparam(f"line_{name}", type_=_l[name].type) for name in _LINE))
            .add_columns(db_now(), written.c.worker)
            .select_from(written),
        )
        return select(*(written.c[column.name] for column in DISPATCH_COLUMNS)).add_cte(
            line.cte("line")
        )

    return Prepared(build)


ADVANCE = _ending(
    {
        "task": bindparam("next_task"),
        "position": bindparam("next_position"),
        **RELEASED,
        **QUEUED,
    }
)


END = _ending(
    {
        "state": bindparam("final_state"),
        "phase": None,
        "due_at": None,
        "task": "",
        "waits_for": None,
        "result": bindparam("final_result"),
        "error": bindparam("final_error"),
        "cancel_reason": None,
        "result_due_at": db_now() + bindparam("store_again"),
        "finished_at": db_now(),
    }
)


_FOLLOWING = (
    select(_o.seq)
    .where(
        _o.resource_kind == bindparam("kind"),
        _o.resource_id == bindparam("object_id"),
        _o.state == OperationState.PENDING.value,
    )
    .order_by(_o.seq)
    .limit(1)
    .scalar_subquery()
)
PROMOTE = Prepared(
    update(operations)
    .where(_o.seq == _FOLLOWING)
    .values(state=OperationState.RUNNING.value, dispatch=1, **QUEUED)
    .returning(*DISPATCH_COLUMNS)
)


SUPERSEDE = Prepared(
    update(operations)
    .where(
        _o.resource_kind == bindparam("kind"),
        _o.resource_id == bindparam("object_id"),
        _o.state == OperationState.PENDING.value,
    )
    .values(
        state=OperationState.SUPERSEDED.value,
        error=bindparam("reason"),
        result_due_at=db_now() + bindparam("store_again"),
        finished_at=db_now(),
    )
    .returning(_o.id)
)
