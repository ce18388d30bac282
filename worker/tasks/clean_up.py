"""Start the operation that deletes an unused share server."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row

from worker.config import Config
from worker.db.operations.values import Dispatch
from worker.engine.accept import Begin, OperationRequest, accept
from worker.engine.saga import Sagas
from worker.tasks import repairs

SAGA = "clean_up_share_server"


def start_clean_up(
    connection: Connection,
    config: Config,
    sagas: Sagas,
    server: Row[Any],
    operation_id: str,
) -> list[Dispatch]:
    """Accept the clean-up of a server; return the messages to publish after the commit.

    The caller has marked the server ``deleting`` for ``operation_id`` in this transaction. A
    running repair of the server is cancelled, and the clean-up is queued behind it.
    """
    resource = ("share_server", server.id)
    because = f"The share server {server.id} is being deleted."
    return [
        *repairs.cancel(connection, config, resource, because),
        *accept(
            connection,
            config,
            sagas,
            OperationRequest(operation_id, SAGA, server.project_id),
            Begin(SAGA, resource, server.backend),
        ),
    ]
