"""Accept operations: the only module that inserts operations.

Request handlers, steps and periodic tasks say which saga to begin, on which resource and backend.
This module looks up the saga's newest version, its first task and the backend's queue, and inserts
the operation in the caller's open transaction. The caller publishes the returned messages after
the commit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from worker.config import Config
from worker.db.operations import store as operations
from worker.db.operations.values import Dispatch
from worker.engine.saga import Sagas
from worker.errors import ConfigurationError, Conflict, ErrorCode, ObjectKind
from worker.messaging.queues import queue_for

Resource = tuple[str, str]
"""The kind and the id of the object that an operation works on."""


@dataclass(frozen=True, slots=True)
class OperationRequest:
    """The id, verb and payload of a requested operation, and who requests it."""

    operation_id: str
    verb: str
    project_id: str
    user_id: str = ""
    request_id: str = ""
    payload: Mapping[str, Any] = field(default_factory=dict)
    payload_digest: str = ""
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Begin:
    """The saga, resource and backend of an operation with steps.

    ``payload`` is merged into the request's payload. With ``at_once`` the operation is never
    queued behind another one: its resource is new, or it is not accepted while another one runs.
    """

    saga: str
    resource: Resource
    backend: str
    payload: Mapping[str, Any] = field(default_factory=dict)
    at_once: bool = False


@dataclass(frozen=True, slots=True)
class Completed:
    """The resource and result of an operation without steps: its handler has written everything."""

    resource: Resource
    result: Mapping[str, Any]


class AlreadyAccepted(Exception):
    """The operation's id or idempotency key is already used, or its resource is busy."""


def accept(
    connection: Connection,
    config: Config,
    sagas: Sagas,
    request: OperationRequest,
    begin: Begin,
    *,
    max_queued: int | None = None,
) -> list[Dispatch]:
    """Insert an operation with steps; return the messages to publish after the commit.

    While another operation on the same resource runs, the new one is queued and the list is empty.
    The caller holds a lock on the resource's row, so that two concurrent requests see each other.

    Raises :class:`AlreadyAccepted`, :class:`~worker.errors.Conflict` when ``max_queued``
    operations are queued on the resource, and :class:`~worker.errors.ConfigurationError` when the
    configuration has no such backend.
    """
    kind, object_id = begin.resource
    busy = not begin.at_once and operations.is_busy(connection, kind, object_id)
    if busy and max_queued is not None:
        _check_queue(connection, kind, object_id, max_queued)
    if begin.backend not in config.backends:
        raise ConfigurationError(
            f"The {ObjectKind(kind).words} {object_id} is on backend {begin.backend}, which is not "
            f"in the configuration any more; an administrator has to bring that backend back.",
            object=ObjectKind.BACKEND.ref(begin.backend),
        )
    saga = sagas.newest(begin.saga)
    values = {
        **_values(request, begin.resource),
        "payload": {**request.payload, **begin.payload},
        "saga": saga.name,
        "saga_version": saga.version,
        "backend": begin.backend,
        "queue": queue_for(config, begin.backend),
        "task": saga.steps[0].do.name,
    }
    dispatch = operations.accept(
        connection, values, running=not busy, republish_after=config.engine.lease
    )
    if dispatch is None:
        raise AlreadyAccepted
    return [] if busy else [dispatch]


def accept_completed(
    connection: Connection, config: Config, request: OperationRequest, completed: Completed
) -> None:
    """Insert an operation that ends in this transaction; its result still has to be stored.

    Raises :class:`AlreadyAccepted`.
    """
    accepted = operations.accept_done(
        connection,
        {
            **_values(request, completed.resource),
            "payload": dict(request.payload),
            "saga": "",
        },
        completed.result,
        store_again=config.engine.lease,
    )
    if not accepted:
        raise AlreadyAccepted


def _values(request: OperationRequest, resource: Resource) -> dict[str, Any]:
    kind, object_id = resource
    return {
        "id": request.operation_id,
        "project_id": request.project_id,
        "user_id": request.user_id,
        "request_id": request.request_id,
        "verb": request.verb,
        "resource_kind": kind,
        "resource_id": object_id,
        "payload_digest": request.payload_digest,
        "idempotency_key": request.idempotency_key,
    }


def _check_queue(connection: Connection, kind: str, object_id: str, limit: int) -> None:
    if operations.pending(connection, kind, object_id) >= limit:
        raise Conflict(
            f"{kind} {object_id} has {limit} operations queued already; send this one again "
            f"when some have ended.",
            object=f"{kind} {object_id}",
            code=ErrorCode.TOO_MANY_QUEUED,
        )
