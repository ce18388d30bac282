"""Start and cancel the operations that repair share servers and exports."""

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
"""The saga that repairs a server and then every share on it."""
RESTART_SERVER: Final = "restart_share_server"
"""The saga that repairs a server alone. It is no longer started, because a restarted file server
may lack the mounts of its shares; it remains for operations that an older release has accepted."""
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
    """The id of a repair, and the messages to publish after the commit; none if it is not new."""

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
    """Accept a repair of an object, queued behind the operations on it; the caller locks its row.

    Returns the existing repair instead when one of the same kind has not ended yet, or when one has
    the same ``operation_id``.
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
    """Cancel the running repair of an object that is to be deleted; other operations go on.

    Returns the messages to publish after the commit.
    """
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
