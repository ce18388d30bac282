"""The journal: operations, how far they are, and who is on them.

Every function takes an open connection and is one statement unless its docstring says otherwise.
A claim is fenced: its holder's later writes name the fence, and write nothing once another claim
or a re-drive has been there (:class:`~worker.errors.LeaseLost`).
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
    """Insert an operation, at once running or behind another on its object.

    Returns what to ring once it is committed; None when its id or its key exists already.
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
    """Insert an operation that its own rows complete; False when its id or key exists already."""
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
    """Return ``id`` and ``verb`` of an object's live operation, behind which others are queued.

    It is held until the commit: it then ends after it, and promotes what is queued.
    """
    return LIVE_ONE.first(connection, kind=resource_kind, object_id=resource_id)


def is_busy(connection: Connection, resource_kind: str, resource_id: str) -> bool:
    """Whether an object has a live operation, which is held as :func:`live` does."""
    return live(connection, resource_kind, resource_id) is not None


def unfinished(
    connection: Connection, resource_kind: str, resource_id: str, verb: str
) -> str | None:
    """Return the id of an object's operation of that verb which has not ended, if there is one."""
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
    """How many operations are queued behind an object."""
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
    """After how many seconds the reconciler may take a message's absence for a loss."""
    return republish_after * (1.0 + random.random() * 0.25)  # noqa: S311 - jitter, not a secret


def queued(republish_after: float) -> dict[Any, Any]:
    """The values of an operation whose message is about to be published, for a cold path."""
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
    """Lease the operation's next act, if it is this one and nobody has it."""
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
    """Return an operation as it stands."""
    row = connection.execute(select(*COLUMNS).where(_o.id == operation_id)).first()
    return None if row is None else operation_of(row)


def renew(connection: Connection, operation_id: str, fence: int, lease: float) -> bool:
    """Push a lease's end; False when it is no longer held."""
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
    """Make sure, for the rest of this transaction, that the lease is still ours."""
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
    """End an action with its lease; ``forward``: only while the operation was not cancelled."""
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
    """Finish a step: the next task of the same chain is due, under the same dispatch number.

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
    """Release the lease until a time, or until :func:`wake` for the key; not an attempt."""
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
    """Release the lease of a step that this release does not know: no attempt, and no wait."""
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
    """Release the lease after a failed attempt; the next one is due after a pause."""
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
    """Return a deadline; at once for an operation that was cancelled while its step ran."""
    return db_now() + case((_o.cancel_reason.is_(None), seconds), else_=0.0)


def start_compensation(
    connection: Connection,
    operation: Operation,
    *,
    task: str,
    error: Mapping[str, str],
    republish_after: float,
) -> Dispatch:
    """Start the compensation: from here the steps are undone, in a chain of its own."""
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
    """Close the operation; its result is to be stored, again after ``store_again`` seconds.

    ``outcome`` and ``message`` are those of the last action. Raises the cancellation of an
    operation that would succeed and was cancelled while that action ran.
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
    """Record that an undo or deletion used up its attempts; it stays due, at a slow pace."""
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
    """Start the next operation that was queued behind an object whose live one just ended.

    Not part of the statement that ends that one: it would not see what was queued meanwhile.
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
    """Make due what waits for a key, oldest first; with a reason to cancel, they fail."""
    # Locked in one order, so that two who wake the same ones do not wait for each other.
    waiting = locked(select(_o.seq).where(_o.waits_for == key).order_by(_o.seq).limit(limit))
    rows = connection.execute(
        publish_all(republish_after)
        .where(_o.seq.in_(waiting), _o.waits_for == key)
        .values({"cancel_reason": dict(cancel_reason)} if cancel_reason else {})
    )
    return [dispatch_of(row) for row in rows]


def locked(rows: Select[tuple[int]], *, skip_locked: bool = False) -> Select[tuple[int]]:
    """Select the keys of rows that are locked first, each once, in the order of ``rows``.

    With ``skip_locked``, rows that somebody else is changing are left out: who waits for nobody
    takes part in no deadlock. A common table expression, because PostgreSQL may run a subquery
    several times.
    """
    first = rows.with_for_update(skip_locked=skip_locked).cte("locked")
    return select(first.c[0])


def retry_failed(
    connection: Connection, resource_kind: str, resource_id: str, *, republish_after: float
) -> list[Dispatch]:
    """Try at once what could not be undone or deleted of an object; it may be done by now."""
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
    """An update that makes operations due now, under a new dispatch number."""
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
    """Make an operation that goes forward fail with an error (a cancel); two statements.

    One that waits is woken for it; one whose step runs meets it when the step ends, and one that
    is queued, or behind another on its object, at its next claim.
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
    """End what is queued behind an object that is to be deleted; return the operations' ids."""
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
    """Write a line of the operation's timeline: an act that ended, and how."""
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
    """Return the other ids under which the same request was sent with its idempotency key."""
    rows = connection.execute(
        select(operation_aliases.c.id).where(operation_aliases.c.operation_id == operation_id)
    )
    return [row.id for row in rows]
