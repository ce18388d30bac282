"""Tables with a few rows, for tests that talk to the journal and the servers directly."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import Connection, Engine, select, update

from worker.db.core.engine import db_now, engine_for, reading, transaction
from worker.db.operations import store as operations
from worker.db.operations.values import Dispatch, Operation
from worker.db.tables.all import metadata
from worker.db.tables.main import operations as operations_table

LEASE = 30.0


def tables(url: str) -> Engine:
    """An engine on a database that has just got its tables."""
    engine = engine_for(url)
    metadata.create_all(engine)
    return engine


def accept(engine: Engine, *, running: bool = True, **values: Any) -> tuple[str, Dispatch | None]:
    """An accepted operation; its id and what to ring."""
    operation_id = str(values.pop("id", uuid.uuid4()))
    defaults = {
        "id": operation_id,
        "project_id": "p1",
        "verb": "create_share",
        "resource_kind": "share",
        "resource_id": operation_id,
        "payload": {},
        "payload_digest": "",
        "saga": "create_share",
        "saga_version": 1,
        "backend": "b1",
        "queue": "steps.default.0",
        "task": "allocate_network",
    }
    with transaction(engine) as connection:
        dispatch = operations.accept(
            connection, {**defaults, **values}, running=running, republish_after=LEASE
        )
    return operation_id, dispatch


def claim(
    engine: Engine, operation_id: str, number: int = 1, action: str = "allocate_network"
) -> Operation | None:
    with transaction(engine) as connection:
        return operations.claim(connection, operation_id, number, action, worker="w", lease=LEASE)


def claimed(engine: Engine, operation_id: str, number: int = 1) -> Operation:
    found = claim(engine, operation_id, number)
    assert found is not None
    return found


def row(engine: Engine, operation_id: str) -> Any:
    with reading(engine) as connection:
        return connection.execute(
            select(operations_table, (operations_table.c.due_at - db_now()).label("left")).where(
                operations_table.c.id == operation_id
            )
        ).one()


def recovery(connection: Connection, operation_id: str, by: float = 1.0) -> None:
    """Let an operation's deadline have passed."""
    connection.execute(
        update(operations_table)
        .where(operations_table.c.id == operation_id)
        .values(due_at=db_now() - by)
    )
