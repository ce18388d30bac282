"""Starting the operation that deletes an unused share server."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row

from worker.config import Config
from worker.db.operations import store as operations
from worker.db.operations.values import Dispatch
from worker.messaging.queues import queue_for
from worker.tasks import repairs

SAGA = "clean_up_share_server"
FIRST_TASK = "delete_share_server"


def start_clean_up(
    connection: Connection, config: Config, server: Row[Any], operation_id: str
) -> list[Dispatch]:
    """Accept the clean-up of a server that is marked ``deleting`` for it in this transaction.

    A repair that is under way on the server is cancelled, and the clean-up follows it.
    """
    resource = ("share_server", server.id)
    because = f"The share server {server.id} is being deleted."
    dispatches = repairs.cancel(connection, config, resource, because)
    busy = operations.is_busy(connection, *resource)
    dispatch = operations.accept(
        connection,
        {
            "id": operation_id,
            "project_id": server.project_id,
            "verb": SAGA,
            "resource_kind": "share_server",
            "resource_id": server.id,
            "payload": {},
            "payload_digest": "",
            "saga": SAGA,
            "backend": server.backend,
            "queue": queue_for(config, server.backend),
            "task": FIRST_TASK,
        },
        running=not busy,
        republish_after=config.engine.lease,
    )
    assert dispatch is not None, "the operation's id is new"
    return dispatches if busy else [dispatch]
