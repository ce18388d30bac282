"""The database's clock is put back: no deadline stays further ahead than it can be."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, update

from tests.support.tables import LEASE, accept, claimed, row, tables
from worker.db.core.engine import transaction
from worker.db.operations import recovery
from worker.db.operations import store as operations
from worker.db.tables.main import operations as operations_table

PAUSE = 600.0
TWO_HOURS = 7200.0


@pytest.fixture
def engine(database_url: str) -> Engine:
    return tables(database_url)


def put_back(engine: Engine) -> int:
    """What two hours less on the clock look like, and what the reconciler makes of it."""
    with transaction(engine) as connection:
        connection.execute(
            update(operations_table).values(due_at=operations_table.c.due_at + TWO_HOURS)
        )
        return recovery.cap_deadlines(connection, lease=LEASE, longest_pause=PAUSE)


def test_a_dead_workers_lease_ends_after_a_lease(engine: Engine) -> None:
    operation_id, _ = accept(engine)
    claimed(engine, operation_id)
    assert put_back(engine) == 1
    assert LEASE - 10 < row(engine, operation_id).left <= LEASE


def test_a_live_worker_keeps_its_lease(engine: Engine) -> None:
    operation_id, _ = accept(engine)
    operation = claimed(engine, operation_id)
    put_back(engine)
    with transaction(engine) as connection:
        assert operations.renew(connection, operation_id, operation.fence, LEASE)
        operations.hold(connection, operation)


def test_a_lost_message_and_a_pause_are_found_again(engine: Engine) -> None:
    queued, _ = accept(engine)
    waiting, _ = accept(engine)
    operation = claimed(engine, waiting)
    with transaction(engine) as connection:
        operations.retry(connection, operation, seconds=5.0)
    assert put_back(engine) == 2
    assert row(engine, queued).left <= LEASE * 1.25
    assert row(engine, waiting).left <= PAUSE


def test_deadlines_that_can_be_stay(engine: Engine) -> None:
    operation_id, _ = accept(engine)
    operation = claimed(engine, operation_id)
    waiting, _ = accept(engine)
    paused = claimed(engine, waiting)
    with transaction(engine) as connection:
        operations.retry(connection, paused, seconds=PAUSE)
        assert recovery.cap_deadlines(connection, lease=LEASE, longest_pause=PAUSE) == 0
        operations.hold(connection, operation)
