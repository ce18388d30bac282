"""A process that is stopped in the middle of a transaction, and who else needs its rows."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, insert, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from tests.support.services import wait_until
from worker.db.core.engine import open_engine, reading, transaction
from worker.db.core.outages import is_passing
from worker.db.schema import upgrade
from worker.db.tables.main import counters
from worker.engine.heartbeat import Heartbeat


@pytest.fixture
def engine(postgres_url: str) -> Iterator[Engine]:
    upgrade(postgres_url)
    engine = open_engine(make_url(postgres_url))
    with transaction(engine) as connection:
        connection.execute(insert(counters).values(name="held", value=1))
    yield engine
    engine.dispose()


def value(engine: Engine) -> int:
    with reading(engine) as connection:
        wanted = select(counters.c.value).where(counters.c.name == "held")
        return int(connection.execute(wanted).scalar_one())


def test_a_counter_that_is_held_keeps_nobody_from_renewing(engine: Engine) -> None:
    heartbeat = Heartbeat(engine, lease_seconds=1.0)
    heartbeat.count("held", 5)
    with transaction(engine) as connection:
        connection.execute(text("UPDATE counters SET value = value + 1 WHERE name = 'held'"))
        heartbeat.flush()  # it waited for ever, and the reconciler's passes with it
        assert value(engine) == 1
    wait_until(lambda: value(engine) == 7, "what was kept is written")
    heartbeat.stop()


def test_a_stopped_transaction_is_ended_and_the_engine_lives(engine: Engine) -> None:
    def stopped() -> None:
        with transaction(engine) as connection:
            connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 100"))
            connection.execute(text("UPDATE counters SET value = 9 WHERE name = 'held'"))
            time.sleep(1.0)
            connection.execute(text("SELECT 1"))

    with pytest.raises(DBAPIError, match="idle-in-transaction") as caught:
        stopped()
    assert is_passing(caught.value)
    assert value(engine) == 1
    with engine.connect() as connection:
        asked = connection.execute(text("SHOW idle_in_transaction_session_timeout"))
        assert asked.scalar_one() == "10s"
