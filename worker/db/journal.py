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
    Update,
    bindparam,
    case,
    func,
    insert,
    select,
    update,
)

from worker.db.engine import db_now, insert_into
from worker.db.operation import (
    BELL,
    COLUMNS,
    Dispatch,
    Operation,
    bell_of,
    condemned,
    operation_of,
)
from worker.db.tables import operation_aliases, operation_steps, operations
from worker.errors import LeaseLost
from worker.model import LIVE_STATES, OperationState, Phase

_o = operations.c
_LIVE = [str(state) for state in LIVE_STATES]


def accept(
    connection: Connection, values: Mapping[str, Any], *, running: bool, patience: float
) -> Dispatch | None:
    """Insert an operation, at once running or behind another on its object.

    Returns what to ring once it is committed; None when its id or its key exists already.
    """
    state = OperationState.RUNNING if running else OperationState.PENDING
    due = {"dispatch": 1, **queued(patience)} if running else {}
    statement = (
        insert_into(connection, operations)
        .values(accepted_at=db_now(), state=state.value, **values, **due)
        .on_conflict_do_nothing()
        .returning(*BELL)
    )
    row = connection.execute(statement).first()
    return None if row is None else bell_of(row)


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


def is_busy(connection: Connection, resource_kind: str, resource_id: str) -> bool:
    """Whether an object has a live operation, behind which others must be queued.

    The live one is held until the commit: it then ends after it, and promotes what is queued.
    """
    live = connection.execute(
        select(_o.seq)
        .where(
            _o.resource_kind == resource_kind,
            _o.resource_id == resource_id,
            _o.state.in_(_LIVE),
        )
        .with_for_update(read=True)
    )
    return live.first() is not None


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


def queued(patience: float) -> dict[Any, Any]:
    """The values of an operation whose message is about to be published.

    ``patience`` is after how many seconds the reconciler may take its absence for a loss.
    """
    wait = patience * (1.0 + random.random() * 0.25)  # noqa: S311 - jitter, not a secret
    return {
        "phase": Phase.QUEUED.value,
        "queued_at": db_now(),
        "due_at": db_now() + wait,
    }


_CLAIM = (
    update(operations)
    .where(
        _o.id == bindparam("operation_id"),
        _o.dispatch == bindparam("number"),
        _o.task == bindparam("act"),
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


def claim(
    connection: Connection, operation_id: str, number: int, act: str, *, worker: str, lease: float
) -> Operation | None:
    """Lease the operation's next act, if it is this one and nobody has it."""
    row = connection.execute(
        _CLAIM,
        {
            "operation_id": operation_id,
            "number": number,
            "act": act,
            "holder": worker,
            "lease": lease,
        },
    ).first()
    return None if row is None else operation_of(row)


def find(connection: Connection, operation_id: str) -> Operation | None:
    """Return an operation as it stands."""
    row = connection.execute(select(*COLUMNS).where(_o.id == operation_id)).first()
    return None if row is None else operation_of(row)


def renew(connection: Connection, operation_id: str, fence: int, lease: float) -> bool:
    """Push a lease's end; False when it is no longer held."""
    changed = connection.execute(
        update(operations).where(*_held(operation_id, fence)).values(due_at=db_now() + lease)
    )
    return changed.rowcount == 1


def _held(operation_id: str, fence: int) -> tuple[ColumnElement[bool], ...]:
    return (_o.id == operation_id, _o.fence == fence, _o.phase == Phase.LEASED.value)


def _fenced(
    connection: Connection,
    operation: Operation,
    values: Mapping[Any, Any],
    *,
    forward: bool = False,
) -> Row[Any]:
    """Write with the lease; ``forward``: only while the operation was not cancelled."""
    held = _held(operation.id, operation.fence)
    conditions = (*held, _o.verdict.is_(None)) if forward else held
    row = connection.execute(
        update(operations).where(*conditions).values(values).returning(*BELL)
    ).first()
    if row is None and forward:
        verdict = connection.execute(select(_o.verdict).where(*held)).scalar()
        if verdict is not None:
            raise condemned(verdict)
    if row is None:
        raise LeaseLost(
            f"Operation {operation.id} is no longer this worker's; nothing was written."
        )
    return row


def hold(connection: Connection, operation: Operation) -> None:
    """Make sure, for the rest of this transaction, that the lease is still ours."""
    held = connection.execute(
        select(_o.seq).where(*_held(operation.id, operation.fence)).with_for_update()
    ).first()
    if held is None:
        raise LeaseLost(
            f"Operation {operation.id} is no longer this worker's; nothing was written."
        )


_RELEASED: Mapping[str, Any] = {"attempts": 0, "waits_for": None, "waiting_since": None}


def advance(
    connection: Connection, operation: Operation, *, task: str, position: int, patience: float
) -> None:
    """Finish a step: the next task of the same chain is due, under the same dispatch number.

    Raises the verdict on an operation that was condemned while its step ran.
    """
    _fenced(
        connection,
        operation,
        {"task": task, "position": position, **_RELEASED, **queued(patience)},
        forward=not operation.undoing,
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
            "attempts": _o.attempts - 1,
            "due_at": _later(seconds),
            "waits_for": waits_for,
            "waiting_since": func.coalesce(_o.waiting_since, db_now()),
        },
    )


def retry(connection: Connection, operation: Operation, *, seconds: float) -> None:
    """Release the lease after a failed attempt; the next one is due after a pause."""
    _fenced(connection, operation, {"phase": Phase.WAITING.value, "due_at": _later(seconds)})


def _later(seconds: float) -> ColumnElement[float]:
    """A deadline; what was condemned while its step ran meets its verdict at once."""
    return db_now() + case((_o.verdict.is_(None), seconds), else_=0.0)


def begin_undo(
    connection: Connection,
    operation: Operation,
    *,
    task: str,
    error: Mapping[str, str],
    patience: float,
) -> Dispatch:
    """Turn round: from here the operation's steps are undone, in a chain of its own."""
    return bell_of(
        _fenced(
            connection,
            operation,
            {
                "state": OperationState.UNDOING.value,
                "undoing": True,
                "task": task,
                "error": dict(error),
                "verdict": None,
                "dispatch": _o.dispatch + 1,
                **_RELEASED,
                **queued(patience),
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
) -> None:
    """Close the operation; its result is to be stored, again after ``store_again`` seconds.

    Raises the verdict on one that would succeed and was condemned while its last step ran.
    """
    _fenced(
        connection,
        operation,
        {
            "state": state.value,
            "phase": None,
            "due_at": None,
            "task": "",
            "waits_for": None,
            "result": result,
            "error": error,
            "verdict": None,
            "result_due_at": db_now() + store_again,
            "finished_at": db_now(),
        },
        forward=state is OperationState.SUCCEEDED,
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
    connection: Connection, resource_kind: str, resource_id: str, *, patience: float
) -> list[Dispatch]:
    """Start the next operation that was queued behind an object whose live one just ended."""
    following = (
        select(_o.seq)
        .where(
            _o.resource_kind == resource_kind,
            _o.resource_id == resource_id,
            _o.state == OperationState.PENDING.value,
        )
        .order_by(_o.seq)
        .limit(1)
        .scalar_subquery()
    )
    rows = connection.execute(
        update(operations)
        .where(_o.seq == following)
        .values(state=OperationState.RUNNING.value, dispatch=1, **queued(patience))
        .returning(*BELL)
    )
    return [bell_of(row) for row in rows]


def wake(
    connection: Connection,
    key: str,
    *,
    patience: float,
    limit: int | None = None,
    verdict: Mapping[str, str] | None = None,
) -> list[Dispatch]:
    """Make due what waits for a key, oldest first; with a verdict, they fail with it."""
    waiting = select(_o.seq).where(_o.waits_for == key).order_by(_o.seq).limit(limit)
    rows = connection.execute(
        ring(patience)
        .where(_o.seq.in_(waiting.scalar_subquery()), _o.waits_for == key)
        .values({"verdict": dict(verdict)} if verdict else {})
    )
    return [bell_of(row) for row in rows]


def ring(patience: float) -> Update:
    """An update that makes operations due now, under a new dispatch number."""
    return (
        update(operations)
        .values(dispatch=_o.dispatch + 1, waits_for=None, **queued(patience))
        .returning(*BELL)
    )


def condemn(
    connection: Connection, operation_id: str, verdict: Mapping[str, str], *, patience: float
) -> list[Dispatch]:
    """Make an operation that goes forward fail with an error (a cancel); two statements.

    One that waits is woken for it; one whose step runs meets it when the step ends, and one that
    is queued, or behind another on its object, at its next claim.
    """
    forward = (OperationState.PENDING.value, OperationState.RUNNING.value)
    connection.execute(
        update(operations)
        .where(_o.id == operation_id, _o.state.in_(forward))
        .values(verdict=dict(verdict))
    )
    rows = connection.execute(
        ring(patience).where(
            _o.id == operation_id,
            _o.state == OperationState.RUNNING.value,
            _o.phase == Phase.WAITING.value,
        )
    )
    return [bell_of(row) for row in rows]


def supersede(
    connection: Connection,
    resource_kind: str,
    resource_id: str,
    error: Mapping[str, str],
    *,
    store_again: float,
) -> list[str]:
    """End what is queued behind an object that is to be deleted; return the operations' ids."""
    rows = connection.execute(
        update(operations)
        .where(
            _o.resource_kind == resource_kind,
            _o.resource_id == resource_id,
            _o.state == OperationState.PENDING.value,
        )
        .values(
            state=OperationState.SUPERSEDED.value,
            error=dict(error),
            result_due_at=db_now() + store_again,
            finished_at=db_now(),
        )
        .returning(_o.id)
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
            operation_id=operation.id,
            task=operation.task,
            outcome=outcome,
            attempt=operation.attempts,
            worker=select(_o.worker).where(_o.id == operation.id).scalar_subquery(),
            started_at=operation.claimed_at,
            finished_at=db_now(),
            message=message,
        )
    )


def aliases(connection: Connection, operation_id: str) -> list[str]:
    """Return the other ids under which the same request was sent with its idempotency key."""
    rows = connection.execute(
        select(operation_aliases.c.id).where(operation_aliases.c.operation_id == operation_id)
    )
    return [row.id for row in rows]
