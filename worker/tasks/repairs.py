"""Starting the operations that bring share servers and exports back, and stopping them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection

from worker.config import Config
from worker.db.operations import store as operations
from worker.db.operations.values import Dispatch
from worker.errors import ErrorCode
from worker.messaging.queues import queue_for

ENSURE_SERVER: Final = "ensure_share_server"
"""The server, and then every share on it."""
RESTART_SERVER: Final = "restart_share_server"
"""The server alone: what it exports is where it was."""
ENSURE_SHARE: Final = "ensure_share"
_FIRST_TASK: Final = {
    ENSURE_SERVER: "ensure_share_server",
    RESTART_SERVER: "ensure_share_server",
    ENSURE_SHARE: "ensure_share",
}


@dataclass(frozen=True, slots=True)
class Asker:
    """On whose behalf an operation is started."""

    project_id: str
    user_id: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Started:
    """The operation that does it, and what to ring once it is committed (nothing: it is known)."""

    operation_id: str
    dispatches: list[Dispatch]


def start(
    connection: Connection,
    config: Config,
    saga: str,
    resource: tuple[str, str],
    *,
    backend: str,
    asker: Asker,
    operation_id: str | None = None,
) -> Started:
    """Accept a repair of an object whose row the caller holds, behind what is under way on it.

    One that has not ended yet is as good as a new one, and so is one of the same ``operation_id``.
    """
    kind, object_id = resource
    known = operations.unfinished(connection, kind, object_id, saga)
    if known is not None:
        return Started(known, [])
    chosen = operation_id or str(uuid.uuid4())
    busy = operations.is_busy(connection, kind, object_id)
    dispatch = operations.accept(
        connection,
        {
            "id": chosen,
            "project_id": asker.project_id,
            "user_id": asker.user_id,
            "request_id": asker.request_id,
            "verb": saga,
            "resource_kind": kind,
            "resource_id": object_id,
            "payload": {},
            "payload_digest": "",
            "saga": saga,
            "backend": backend,
            "queue": queue_for(config, backend),
            "task": _FIRST_TASK[saga],
        },
        running=not busy,
        republish_after=config.engine.lease,
    )
    return Started(chosen, [] if busy or dispatch is None else [dispatch])


def cancel(
    connection: Connection, config: Config, resource: tuple[str, str], because: str
) -> list[Dispatch]:
    """Let a repair that is under way on an object end soon: it is to be deleted."""
    kind, object_id = resource
    live = operations.live(connection, kind, object_id)
    if live is None or live.verb not in _FIRST_TASK:
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
