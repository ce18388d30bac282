"""The store of operations: their progress, and the lease of the worker that runs a step.

Every function takes an open connection and is one statement unless its docstring says otherwise.
A claim is fenced: its holder's later writes name the fence, and raise
:class:`~worker.errors.LeaseLost` without writing after another claim or a re-drive.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    Update,
    case,
    func,
    insert,
    select,
    update,
)

from worker.db.core.engine import db_now, insert_into
from worker.db.core.prepared import Prepared
from worker.db.operations.statements import (
    ACCEPT_PENDING,
    ACCEPT_RUNNING,
    ADVANCE,
    CLAIM,
    END,
    GIVEN,
    HOLD,
    LIVE_ONE,
    PROMOTE,
    QUEUED,
    RELEASED,
    SUPERSEDE,
    held,
)
from worker.db.operations.values import (
    COLUMNS,
    DISPATCH_COLUMNS,
    Dispatch,
    Operation,
    cancelled,
    dispatch_of,
    operation_of,
)
from worker.db.tables.main import operation_aliases, operation_steps, operations
from worker.errors import LeaseLost
from worker.model import LIVE_STATES, OperationState, Phase

_o = operations.c


def accept(
    connection: Connection, values: Mapping[str, Any], *, running: bool, republish_after: float
) -> Dispatch | None:
    """Insert an operation: ``running`` at once, or queued behind another one on its object.

    Returns the message to publish after the commit; None when its id or its key exists already.
    """
    given = {**GIVEN, **values}
    if running:
        row = ACCEPT_RUNNING.first(connection, wait=_wait(republish_after), **given)
    else:
        row = ACCEPT_PENDING.first(connection, **given)
    return None if row is None else dispatch_of(row)


def accept_done(
    connection: Connection,
    values: Mapping[str, Any],
    result: Mapping[str, Any],
    *,
    store_again: float,
) -> bool:
    """Insert an operation that has succeeded already; False when its id or key exists."""
    statement = (
        insert_into(connection, operations)
        .values(
            state=OperationState.SUCCEEDED.value,
            result=dict(result),
            result_due_at=db_now() + store_again,
            accepted_at=db_now(),
            finished_at=db_now(),
            **values,
        )
        .on_conflict_do_nothing()
        .returning(_o.seq)
    )
    return connection.execute(statement).first() is not None


def live(connection: Connection, resource_kind: str, resource_id: str) -> Row[Any] | None:
    """Return ``id`` and ``verb`` of an object's live operation, locked until the commit.

    New operations on the object are queued behind it. Because of the lock it ends only after this
    transaction, and then starts what was queued.
    """
    return LIVE_ONE.first(connection, kind=resource_kind, object_id=resource_id)


def is_busy(connection: Connection, resource_kind: str, resource_id: str) -> bool:
    """Tell whether an object has a live operation, and lock it as :func:`live` does."""
    return live(connection, resource_kind, resource_id) is not None


def unfinished(
    connection: Connection, resource_kind: str, resource_id: str, verb: str
) -> str | None:
    """Return the id of an object's operation of a verb that has not ended, or None."""
    return connection.execute(
        select(_o.id)
        .where(
            _o.resource_kind == resource_kind,
            _o.resource_id == resource_id,
            _o.verb == verb,
            _o.state.in_([OperationState.PENDING.value, *map(str, LIVE_STATES)]),
        )
        .limit(1)
    ).scalar_one_or_none()


def pending(connection: Connection, resource_kind: str, resource_id: str) -> int:
    """Return the number of operations that are queued on an object."""
    return connection.execute(
        select(func.count())
        .select_from(operations)
        .where(
            _o.resource_kind == resource_kind,
            _o.resource_id == resource_id,
            _o.state == OperationState.PENDING.value,
        )
    ).scalar_one()


def _wait(republish_after: float) -> float:
    """Return the delay, with jitter, after which an unclaimed message counts as overdue."""
    return republish_after * (1.0 + random.random() * 0.25)  # noqa: S311 - jitter, not a secret


def queued(republish_after: float) -> dict[Any, Any]:
    """Return the column values of an operation whose message is about to be published."""
    return {**QUEUED, "due_at": db_now() + _wait(republish_after)}


def claim(
    connection: Connection,
    operation_id: str,
    number: int,
    action: str,
    *,
    worker: str,
    lease: float,
) -> Operation | None:
    """Lease the operation's next action for ``lease`` seconds.

    None unless ``number`` and ``action`` are the current ones and no other worker has a lease.
    """
    row = CLAIM.first(
        connection,
        operation_id=operation_id,
        number=number,
        action=action,
        holder=worker,
        lease=lease,
    )
    return None if row is None else operation_of(row)


def find(connection: Connection, operation_id: str) -> Operation | None:
    """Return an operation, or None."""
    row = connection.execute(select(*COLUMNS).where(_o.id == operation_id)).first()
    return None if row is None else operation_of(row)


def renew(connection: Connection, operation_id: str, fence: int, lease: float) -> bool:
    """Extend a lease to ``lease`` seconds from now; False when it is no longer held."""
    changed = connection.execute(
        update(operations).where(*held(operation_id, fence)).values(due_at=db_now() + lease)
    )
    return changed.rowcount == 1


def _fenced(connection: Connection, operation: Operation, values: Mapping[Any, Any]) -> Row[Any]:
    row = connection.execute(
        update(operations)
        .where(*held(operation.id, operation.fence))
        .values(values)
        .returning(*DISPATCH_COLUMNS)
    ).first()
    return _still_ours(row, operation)


def _still_ours(row: Row[Any] | None, operation: Operation) -> Row[Any]:
    if row is None:
        raise LeaseLost(
            f"Operation {operation.id} is no longer this worker's; nothing was written."
        )
    return row


def hold(connection: Connection, operation: Operation) -> None:
    """Lock an operation until the commit; raise LeaseLost if its lease has been lost."""
    row = HOLD.first(connection, held_id=operation.id, held_fence=operation.fence)
    _still_ours(row, operation)


def _end_action(
    statement: Prepared,
    connection: Connection,
    operation: Operation,
    *,
    forward: bool,
    outcome: str = "done",
    message: str = "",
    **values: Any,
) -> None:
    """End an action and its lease; with ``forward``, raise if the operation was cancelled."""
    on_sqlite = connection.dialect.name == "sqlite"
    line = (
        {}
        if on_sqlite
        else {f"line_{name}": value for name, value in _line(operation, outcome, message).items()}
    )
    ours = {"held_id": operation.id, "held_fence": operation.fence}
    row = statement.first(connection, **ours, cancelled_too=not forward, **line, **values)
    if row is None:
        cancel_reason = connection.execute(
            select(_o.cancel_reason).where(*held(operation.id, operation.fence))
        ).scalar()
        if cancel_reason is not None:
            raise cancelled(cancel_reason)
    _still_ours(row, operation)
    if on_sqlite:
        record(connection, operation, outcome, message)


def advance(
    connection: Connection,
    operation: Operation,
    *,
    task: str,
    position: int,
    republish_after: float,
) -> None:
    """Finish a step; the next task of the chain becomes due under the same dispatch number.

    Raises the cancellation of an operation that was cancelled while its step ran.
    """
    _end_action(
        ADVANCE,
        connection,
        operation,
        forward=not operation.undoing,
        next_task=task,
        next_position=position,
        wait=_wait(republish_after),
    )


def wait(
    connection: Connection, operation: Operation, *, seconds: float, waits_for: str | None
) -> None:
    """Release the lease for some seconds, or until :func:`wake` for the key ``waits_for``.

    A wait does not count as an attempt.
    """
    _fenced(
        connection,
        operation,
        {
            "phase": Phase.WAITING.value,
            "attempts": 0,
            "failures": 0,
            "failing_since": None,
            "due_at": _later(seconds),
            "waits_for": waits_for,
            "waiting_since": func.coalesce(_o.waiting_since, db_now()),
        },
    )


def park(connection: Connection, operation: Operation, *, seconds: float) -> None:
    """Release the lease of a step that this release does not know, for some seconds.

    It counts neither as an attempt nor as a wait.
    """
    _fenced(
        connection,
        operation,
        {
            "phase": Phase.WAITING.value,
            "attempts": _o.attempts - 1,
            "due_at": db_now() + seconds,
        },
    )


def retry(connection: Connection, operation: Operation, *, seconds: float) -> None:
    """Release the lease after a failed attempt; the next one is due after ``seconds``."""
    _fenced(
        connection,
        operation,
        {
            "phase": Phase.WAITING.value,
            "failures": _o.failures + 1,
            "failing_since": func.coalesce(_o.failing_since, db_now()),
            "due_at": _later(seconds),
        },
    )


def _later(seconds: float) -> ColumnElement[float]:
    """Return the deadline in ``seconds``; now for an operation cancelled while its step ran."""
    return db_now() + case((_o.cancel_reason.is_(None), seconds), else_=0.0)


def start_compensation(
    connection: Connection,
    operation: Operation,
    *,
    task: str,
    error: Mapping[str, str],
    republish_after: float,
) -> Dispatch:
    """Start the compensation at ``task``: a chain of its own that undoes the steps."""
    return dispatch_of(
        _fenced(
            connection,
            operation,
            {
                "state": OperationState.UNDOING.value,
                "undoing": True,
                "task": task,
                "error": dict(error),
                "cancel_reason": None,
                "dispatch": _o.dispatch + 1,
                **RELEASED,
                **queued(republish_after),
            },
        )
    )


def end(
    connection: Connection,
    operation: Operation,
    state: OperationState,
    *,
    result: Mapping[str, Any] | None,
    error: Mapping[str, str] | None,
    store_again: float,
    outcome: str = "done",
    message: str = "",
) -> None:
    """End the operation; its result is stored again after ``store_again`` seconds if need be.

    ``outcome`` and ``message`` are those of the last action. Raises the cancellation when the
    operation would succeed and was cancelled while that action ran.
    """
    _end_action(
        END,
        connection,
        operation,
        forward=state is OperationState.SUCCEEDED,
        outcome=outcome,
        message=message,
        final_state=state.value,
        final_result=result,
        final_error=error,
        store_again=store_again,
    )


def give_up(
    connection: Connection,
    operation: Operation,
    *,
    error: Mapping[str, str],
    pause: float,
    store_again: float,
) -> None:
    """Record that an undo or deletion used up its attempts; retry it every ``pause`` seconds."""
    _fenced(
        connection,
        operation,
        {
            "state": OperationState.COMPENSATION_FAILED.value,
            "phase": Phase.WAITING.value,
            "due_at": db_now() + pause,
            "error": dict(error),
            "result_due_at": db_now() + store_again,
            "finished_at": db_now(),
        },
    )


def promote(
    connection: Connection, resource_kind: str, resource_id: str, *, republish_after: float
) -> list[Dispatch]:
    """Start the next queued operation on an object, after its live one has ended.

    It is a statement of its own because the one that ends the live operation would not see what
    was queued while it ran.
    """
    rows = PROMOTE.all(
        connection, kind=resource_kind, object_id=resource_id, wait=_wait(republish_after)
    )
    return [dispatch_of(row) for row in rows]


def wake(
    connection: Connection,
    key: str,
    *,
    republish_after: float,
    limit: int | None = None,
    cancel_reason: Mapping[str, str] | None = None,
) -> list[Dispatch]:
    """Make operations that wait for a key due, oldest first; with ``cancel_reason`` they fail."""
    # Locked in one order, so that two transactions that wake the same rows do not deadlock.
    waiting = locked(select(_o.seq).where(_o.waits_for == key).order_by(_o.seq).limit(limit))
    rows = connection.execute(
        publish_all(republish_after)
        .where(_o.seq.in_(waiting), _o.waits_for == key)
        .values({"cancel_reason": dict(cancel_reason)} if cancel_reason else {})
    )
    return [dispatch_of(row) for row in rows]


def locked(rows: Select[tuple[int]], *, skip_locked: bool = False) -> Select[tuple[int]]:
    """Select the keys of ``rows``, locking each row once, in their order.

    With ``skip_locked``, rows locked by another transaction are left out: a transaction that never
    waits cannot be part of a deadlock. It is a common table expression because PostgreSQL may run
    a subquery several times.
    """
    first = rows.with_for_update(skip_locked=skip_locked).cte("locked")
    return select(first.c[0])


def retry_failed(
    connection: Connection, resource_kind: str, resource_id: str, *, republish_after: float
) -> list[Dispatch]:
    """Retry at once the operations on an object that could not be undone or deleted."""
    failed = select(_o.seq).where(
        _o.resource_kind == resource_kind,
        _o.resource_id == resource_id,
        _o.state == OperationState.COMPENSATION_FAILED.value,
        _o.phase == Phase.WAITING.value,
    )
    rows = connection.execute(
        publish_all(republish_after).where(_o.seq.in_(locked(failed, skip_locked=True)))
    )
    return [dispatch_of(row) for row in rows]


def publish_all(republish_after: float) -> Update:
    """Return an update that queues operations for publishing under a new dispatch number."""
    return (
        update(operations)
        .values(dispatch=_o.dispatch + 1, waits_for=None, **queued(republish_after))
        .returning(*DISPATCH_COLUMNS)
    )


def request_cancel(
    connection: Connection,
    operation_id: str,
    cancel_reason: Mapping[str, str],
    *,
    republish_after: float,
) -> list[Dispatch]:
    """Request that an operation fails with ``cancel_reason``; two statements.

    A waiting operation is woken. One with a running step fails when the step ends; one that is
    queued, or behind another on its object, fails at its next claim.
    """
    forward = (OperationState.PENDING.value, OperationState.RUNNING.value)
    connection.execute(
        update(operations)
        .where(_o.id == operation_id, _o.state.in_(forward))
        .values(cancel_reason=dict(cancel_reason))
    )
    rows = connection.execute(
        publish_all(republish_after).where(
            _o.id == operation_id,
            _o.state == OperationState.RUNNING.value,
            _o.phase == Phase.WAITING.value,
        )
    )
    return [dispatch_of(row) for row in rows]


def supersede(
    connection: Connection,
    resource_kind: str,
    resource_id: str,
    error: Mapping[str, str],
    *,
    store_again: float,
) -> list[str]:
    """End the operations that are queued on an object about to be deleted; return their ids."""
    rows = SUPERSEDE.all(
        connection,
        kind=resource_kind,
        object_id=resource_id,
        reason=dict(error),
        store_again=store_again,
    )
    return [row.id for row in rows]


def record(
    connection: Connection,
    operation: Operation,
    outcome: str,
    message: str = "",
) -> None:
    """Add an action that ended, and its outcome, to the operation's timeline."""
    connection.execute(
        insert(operation_steps).values(
            worker=select(_o.worker).where(_o.id == operation.id).scalar_subquery(),
            finished_at=db_now(),
            **_line(operation, outcome, message),
        )
    )


def _line(operation: Operation, outcome: str, message: str) -> dict[str, Any]:
    return {
        "operation_id": operation.id,
        "task": operation.task,
        "outcome": outcome,
        "attempt": operation.attempts,
        "started_at": operation.claimed_at,
        "message": message,
    }


def aliases(connection: Connection, operation_id: str) -> list[str]:
    """Return the other ids under which the request was sent with the same idempotency key."""
    rows = connection.execute(
        select(operation_aliases.c.id).where(operation_aliases.c.operation_id == operation_id)
    )
    return [row.id for row in rows]
