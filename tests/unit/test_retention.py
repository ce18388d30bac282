"""Forgetting what ended long ago: all of it, in batches, and by several at once."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, func, insert, select, update

from tests.support.tables import accept, tables
from worker.db.core.engine import db_now, reading, transaction
from worker.db.operations import retention
from worker.db.tables.main import backends, operation_aliases, operation_steps, operations

KEEP = 100.0


@pytest.fixture
def engine(database_url: str) -> Engine:
    return tables(database_url)


def ended(engine: Engine, ago: float, **values: str) -> str:
    """An operation that ended so many seconds ago, with a timeline and an alias."""
    operation_id, _ = accept(engine, **values)
    with transaction(engine) as connection:
        connection.execute(
            update(operations)
            .where(operations.c.id == operation_id)
            .values(state="succeeded", phase=None, due_at=None, finished_at=db_now() - ago)
        )
        connection.execute(
            insert(operation_steps).values(
                operation_id=operation_id,
                task="create_share",
                outcome="done",
                attempt=1,
                worker="w",
                started_at=1.0,
                finished_at=2.0,
            )
        )
        connection.execute(
            insert(operation_aliases).values(
                id=f"also-{operation_id[:30]}", operation_id=operation_id, created_at=1.0
            )
        )
    return operation_id


def left(engine: Engine) -> tuple[int, ...]:
    with reading(engine) as connection:
        return tuple(
            connection.execute(select(func.count()).select_from(one)).scalar_one()
            for one in (operations, operation_steps, operation_aliases)
        )


def test_what_ended_long_ago_is_forgotten_oldest_first(engine: Engine) -> None:
    for ago in (KEEP + 30, KEEP + 20, KEEP + 10, KEEP - 10):
        ended(engine, ago)
    accept(engine)  # under way
    with transaction(engine) as connection:
        assert retention.has_old(connection, KEEP)
        assert retention.forget_old(connection, KEEP, 2) == 2
    assert left(engine) == (3, 2, 2)
    with transaction(engine) as connection:
        assert retention.forget_old(connection, KEEP, 2) == 1
        assert not retention.has_old(connection, KEEP)
        assert retention.forget_old(connection, KEEP, 2) == 0
    assert left(engine) == (2, 1, 1)


def test_audits_are_kept_for_a_shorter_time(engine: Engine) -> None:
    with transaction(engine) as connection:
        connection.execute(insert(backends).values(name="b1", report={}))
    audit = {"verb": "audit_backend", "resource_kind": "backend", "resource_id": "b1"}
    ended(engine, 50, **audit)
    ended(engine, 5, **audit)
    ended(engine, 50)
    with transaction(engine) as connection:
        assert retention.forget_old_audits(connection, "audit_backend", 20, 10) == 1
    assert left(engine) == (2, 2, 2)


def test_two_reconcilers_forget_different_operations(postgres_url: str) -> None:
    engine = tables(postgres_url)
    for _ in range(4):
        ended(engine, KEEP + 10)
    with transaction(engine) as one, transaction(engine) as other:
        assert retention.forget_old(one, KEEP, 3) == 3
        assert retention.forget_old(other, KEEP, 3) == 1  # and did not wait
    assert left(engine) == (0, 0, 0)
