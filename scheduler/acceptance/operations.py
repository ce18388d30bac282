"""Handlers of operators' requests about operations: cancel, retry at once, give up.

Each is one conditional change of the operation's row. A worker that runs a step of it at the same
time has either written before, or notices the change at its next write.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Row, or_, select, update

from scheduler.acceptance.accept import Acceptance
from worker.db.core.engine import db_now
from worker.db.operations import store as operations
from worker.db.operations.values import Operation, dispatch_of
from worker.db.tables.main import operation_aliases
from worker.db.tables.main import operations as operations_table
from worker.engine.accept import Completed
from worker.engine.job import StepTransaction
from worker.errors import Conflict, ErrorCode, NotFound, ObjectKind
from worker.messaging.queues import group_of, queue_for
from worker.model import OperationState, Phase
from worker.tasks.giving_up import force_close

_o = operations_table.c
_S = OperationState
_ENDED = {
    _S.SUCCEEDED: "has succeeded; to undo it, ask for the opposite",
    _S.FAILED: "has failed and was undone; send the request anew",
    _S.CANCELLED: "was cancelled and undone; send the request anew",
    _S.SUPERSEDED: "was overtaken by a delete",
    _S.GIVEN_UP: "was given up; the audit removes what it left",
}


def cancel(acceptance: Acceptance) -> Completed:
    """Cancel an operation and undo its steps, even while a step runs."""
    row = _held(acceptance)
    state = _S(row.state)
    if state is _S.UNDOING:
        raise _refused(row, "is being undone already")
    if state is _S.COMPENSATION_FAILED:
        raise _refused(row, "could not be undone or deleted; retry it, or give it up")
    saga = acceptance.sagas.find(row.saga, row.saga_version)
    step = saga.step(row.task, undoing=False) if saga else None
    if step is None:
        raise _refused(row, "is of a newer release; a scheduler of that release has to cancel it")
    if step.compensation is None:
        raise _refused(row, f"cannot be undone ({step.because}); ask for the opposite")
    cancelled = {
        "code": str(ErrorCode.CANCELLED),
        "message": f"An operator cancelled the operation {row.id}.",
        "object": ObjectKind.OPERATION.ref(row.id),
        "field": "",
    }
    _queue(acceptance, row)  # undoing it needs the backend
    acceptance.dispatches.extend(
        operations.request_cancel(
            acceptance.connection,
            row.id,
            cancelled,
            republish_after=acceptance.config.engine.lease,
        )
    )
    return Completed(("operation", row.id), {"id": row.id, "state": row.state, "cancelled": True})


def retry(acceptance: Acceptance) -> Completed:
    """Publish at once an operation that waits for its next attempt."""
    row = _held(acceptance)
    if row.state == _S.PENDING:
        raise _refused(row, f"is behind another on {row.resource_kind} {row.resource_id}")
    published = acceptance.connection.execute(
        operations.publish_all(acceptance.config.engine.lease)
        .where(_o.id == row.id, _is_waiting(acceptance, row))
        .values(queue=_queue(acceptance, row))
    ).first()
    if published is None:
        raise _refused(row, f"is under way already: {_progress(row)}")
    acceptance.dispatches.append(dispatch_of(published))
    return Completed(("operation", row.id), {"id": row.id, "state": row.state, "task": row.task})


def _queue(acceptance: Acceptance, row: Row[Any]) -> str:
    """Return the queue that is now configured for the operation's backend.

    Raises :class:`~worker.errors.ConfigurationError` when the backend was renamed or removed.
    """
    return queue_for(acceptance.config, row.backend) if row.backend else row.queue


def _is_waiting(acceptance: Acceptance, row: Row[Any]) -> ColumnElement[bool]:
    """Return the condition that the operation waits, or that its message is in a former queue."""
    waits = _o.phase == Phase.WAITING.value
    if _queue(acceptance, row) == row.queue:
        return waits
    return or_(waits, _o.phase == Phase.QUEUED.value)


def _progress(row: Row[Any]) -> str:
    """Describe who runs the current step, or which worker group its message waits for."""
    if row.phase == Phase.LEASED:
        return f"{row.worker} runs {row.task}"
    return (
        f"the message for {row.task} is in the queue {row.queue} and waits for a worker of the "
        f"group {group_of(row.queue)}"
    )


def give_up(acceptance: Acceptance) -> Completed:
    """End an operation that could not be undone; list in its error what may be left over."""
    row = _held(acceptance)
    if row.state != _S.COMPENSATION_FAILED:
        raise _refused(row, "is still under way; it can be given up when its undo has failed")
    connection, config = acceptance.connection, acceptance.config
    operation = operations.find(connection, row.id)
    assert operation is not None, "its row is locked"
    tx = StepTransaction(connection, operation, config, acceptance.sagas)
    left = force_close(tx)
    message = f"Given up by an operator; possibly left behind: {', '.join(left) or 'nothing'}."
    _conclude(acceptance, operation, message)
    acceptance.dispatches.extend(tx.dispatches)
    return Completed(
        ("operation", row.id),
        {"id": row.id, "state": str(_S.GIVEN_UP), "may_be_left": left},
    )


def _conclude(acceptance: Acceptance, operation: Operation, message: str) -> None:
    """End an operation under a new fence, so that a worker's later writes are refused."""
    error = dict(operation.error or {})
    error["message"] = f"{error.get('message', '')} {message}".strip()
    operations.record(acceptance.connection, operation, "given up", message)
    acceptance.connection.execute(
        update(operations_table)
        .where(_o.id == operation.id)
        .values(
            state=_S.GIVEN_UP.value,
            phase=None,
            due_at=None,
            task="",
            waits_for=None,
            fence=_o.fence + 1,
            dispatch=_o.dispatch + 1,
            error=error,
            result_due_at=db_now(),
            finished_at=db_now(),
        )
    )


def _held(acceptance: Acceptance) -> Row[Any]:
    """Return the requested operation of any project, locked; refuse one that has ended."""
    wanted, a = acceptance.request.operation_id, operation_aliases.c
    connection = acceptance.connection
    alias = connection.execute(select(a.operation_id).where(a.id == wanted)).scalar()
    row = connection.execute(
        select(operations_table).where(_o.id == (alias or wanted)).with_for_update()
    ).first()
    if row is None:
        raise NotFound(
            f"There is no operation {wanted}.",
            object=ObjectKind.OPERATION.ref(wanted),
            field="operation_id",
        )
    ended = _ENDED.get(_S(row.state))
    if ended is not None:
        raise _refused(row, ended)
    return row


def _refused(row: Row[Any], why: str) -> Conflict:
    return Conflict(
        f"The operation {row.id} ({row.verb}) {why}.",
        object=ObjectKind.OPERATION.ref(row.id),
        field="operation_id",
    )
