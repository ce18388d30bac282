"""What an operator may do to an operation: cancel it, have it tried now, or give it up.

Each is one conditional change of its row, so a worker that is on it either was first, or learns
of it with its next write.
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
    """Undo an operation from where it stands, also while a step runs."""
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
    """Have an operation that waits for its next attempt tried now."""
    row = _held(acceptance)
    if row.state == _S.PENDING:
        raise _refused(row, f"is behind another on {row.resource_kind} {row.resource_id}")
    rung = acceptance.connection.execute(
        operations.publish_all(acceptance.config.engine.lease)
        .where(_o.id == row.id, _is_waiting(acceptance, row))
        .values(queue=_queue(acceptance, row))
    ).first()
    if rung is None:
        raise _refused(row, f"is under way already: {_doing(row)}")
    acceptance.dispatches.append(dispatch_of(rung))
    return Completed(("operation", row.id), {"id": row.id, "state": row.state, "task": row.task})


def _queue(acceptance: Acceptance, row: Row[Any]) -> str:
    """Return the queue that the operation's backend has today.

    Raises :class:`~worker.errors.ConfigurationError` when it was renamed or removed.
    """
    return queue_for(acceptance.config, row.backend) if row.backend else row.queue


def _is_waiting(acceptance: Acceptance, row: Row[Any]) -> ColumnElement[bool]:
    """Whether nobody is on it: it waits, or its message is in a queue of former days."""
    waits = _o.phase == Phase.WAITING.value
    if _queue(acceptance, row) == row.queue:
        return waits
    return or_(waits, _o.phase == Phase.QUEUED.value)


def _doing(row: Row[Any]) -> str:
    """Say what a step that does not wait is about, and for whom its message waits."""
    if row.phase == Phase.LEASED:
        return f"{row.worker} does {row.task}"
    return (
        f"the message for {row.task} is in the queue {row.queue} and waits for a worker of the "
        f"group {group_of(row.queue)}"
    )


def give_up(acceptance: Acceptance) -> Completed:
    """End an operation that could not be undone; what may be left is on record."""
    row = _held(acceptance)
    if row.state != _S.COMPENSATION_FAILED:
        raise _refused(row, "is still under way; it can be given up when its undo has failed")
    connection, config = acceptance.connection, acceptance.config
    operation = operations.find(connection, row.id)
    assert operation is not None, "its row is held"
    tx = StepTransaction(connection, operation, config, acceptance.sagas)
    left = force_close(tx)
    message = f"Given up by an operator; outside may be left: {', '.join(left) or 'nothing'}."
    _conclude(acceptance, operation, message)
    acceptance.dispatches.extend(tx.dispatches)
    return Completed(
        ("operation", row.id),
        {"id": row.id, "state": str(_S.GIVEN_UP), "may_be_left": left},
    )


def _conclude(acceptance: Acceptance, operation: Operation, message: str) -> None:
    """End it under a new fence: a worker that is on it writes nothing any more."""
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
    """The operation, of any project, held until the commit; one that has ended is refused."""
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
