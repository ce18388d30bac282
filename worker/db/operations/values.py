"""An operation's row as a frozen value, and the message that is published for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row

from worker.db.tables.main import operations
from worker.errors import ErrorCode, Fatal
from worker.model import OperationState, Phase

_o = operations.c


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Message to publish for an operation after its row is committed."""

    operation_id: str
    dispatch: int
    saga: str
    saga_version: int
    task: str
    position: int
    undoing: bool
    queue: str


@dataclass(frozen=True, slots=True)
class Operation:
    """Operation as its step sees it after the claim. Times are seconds since the epoch."""

    id: str
    seq: int
    project_id: str
    user_id: str
    request_id: str
    verb: str
    resource_kind: str
    resource_id: str
    payload: Mapping[str, Any]
    idempotency_key: str | None
    saga: str
    saga_version: int
    backend: str | None
    queue: str
    state: OperationState
    phase: Phase | None
    undoing: bool
    task: str
    position: int
    dispatch: int
    fence: int
    attempts: int
    failures: int
    failing_since: float | None
    accepted_at: float
    claimed_at: float
    queued_at: float
    redrives: int
    waiting_since: float | None
    cancel_reason: Mapping[str, str] | None
    error: Mapping[str, str] | None
    """Reason for the compensation, while the operation is being undone."""


COLUMNS = tuple(_o[name].label(name) for name in Operation.__dataclass_fields__)
DISPATCH_COLUMNS = (
    *(_o.id, _o.dispatch, _o.saga, _o.saga_version),
    *(_o.task, _o.position, _o.undoing, _o.queue),
)


def operation_of(row: Row[Any]) -> Operation:
    """Return the operation of a row that has :data:`COLUMNS`."""
    values = row._asdict()
    values["state"] = OperationState(values["state"])
    values["phase"] = Phase(values["phase"]) if values["phase"] else None
    return Operation(**values)


def cancelled(cancel_reason: Mapping[str, str]) -> Fatal:
    """Return the error with which a cancelled operation ends."""
    return Fatal(
        cancel_reason["message"],
        object=cancel_reason.get("object", ""),
        code=ErrorCode(cancel_reason["code"]),
    )


def dispatch_of(row: Row[Any]) -> Dispatch:
    """Return the message for a row that has the columns of :data:`DISPATCH_COLUMNS`."""
    return Dispatch(
        operation_id=row.id,
        dispatch=row.dispatch,
        saga=row.saga,
        saga_version=row.saga_version,
        task=row.task,
        position=row.position,
        undoing=row.undoing,
        queue=row.queue,
    )
