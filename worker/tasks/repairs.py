"""Start the operations that bring share servers and exports back, and stop them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from worker.config import Config
from worker.db.operations import store as operations
from worker.db.operations.values import Dispatch
from worker.engine.accept import (
    AlreadyAccepted,
    Begin,
    OperationRequest,
    Resource,
    accept,
)
from worker.engine.saga import Sagas
from worker.errors import ErrorCode

ENSURE_SERVER: Final = "ensure_share_server"
"""The server, and then every share on it."""
RESTART_SERVER: Final = "restart_share_server"
"""The server alone. Nothing begins it any more: a file server that is started again may lack the
mounts of its shares, so these are ensured as well. Old operations still end."""
ENSURE_SHARE: Final = "ensure_share"
_REPAIRS: Final = frozenset({ENSURE_SERVER, RESTART_SERVER, ENSURE_SHARE})


@dataclass(frozen=True, slots=True)
class Requester:
    """The project and user on whose behalf an operation is started."""

    project_id: str
    user_id: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """The repairing operation, and what to publish after the commit (nothing if it was known)."""

    operation_id: str
    dispatches: list[Dispatch]


def start(
    connection: Connection,
    config: Config,
    sagas: Sagas,
    begin: Begin,
    *,
    requester: Requester,
    operation_id: str | None = None,
) -> Started:
    """Accept a repair of an object whose row the caller holds, behind what is under way on it.

    A repair of the same kind that has not ended yet, or one of the same ``operation_id`` that
    has, is returned instead of a new one.
    """
    kind, object_id = begin.resource
    known = operations.unfinished(connection, kind, object_id, begin.saga)
    if known is not None:
        return Started(known, [])
    request = OperationRequest(
        operation_id or str(uuid.uuid4()),
        begin.saga,
        requester.project_id,
        requester.user_id,
        requester.request_id,
    )
    try:
        dispatches = accept(connection, config, sagas, request, begin)
    except AlreadyAccepted:
        dispatches = []
    return Started(request.operation_id, dispatches)


def cancel(
    connection: Connection, config: Config, resource: Resource, because: str
) -> list[Dispatch]:
    """Cancel a repair that is under way on an object which is to be deleted."""
    kind, object_id = resource
    live = operations.live(connection, kind, object_id)
    if live is None or live.verb not in _REPAIRS:
        return []
    cancel_reason: Mapping[str, str] = {
        "code": str(ErrorCode.CANCELLED),
        "message": because,
        "object": f"{kind} {object_id}",
        "field": "",
    }
    return operations.request_cancel(
        connection, live.id, cancel_reason, republish_after=config.engine.lease
    )
