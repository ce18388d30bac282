"""Which errors are outages, and which of them have the connection replaced."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from worker.db.core.engine import open_engine, reading, transaction
from worker.db.core.outages import is_passing, patiently
from worker.db.core.postgresql import driver_connection, send

UNFIT = ("08006", "25006", "25P03", "53100", "53200", "53400", "57P01", "58030", "XX001", "XX002")
RACE_LOST = ("40001", "40P01", "40003", "55006", "55P03", "57014")
DEFECTS = ("22001", "23505", "42601", "42P01", "42501", "XX000", "25P02", "0A000", "P0001")


@pytest.fixture
def engine(postgres_url: str) -> Iterator[Engine]:
    engine = open_engine(make_url(postgres_url))
    yield engine
    engine.dispose()


def failing(state: str) -> str:
    return f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{state}'; END $$"


def process(engine: Engine) -> int:
    with reading(engine) as connection:
        return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())


def fail(engine: Engine, state: str, *, past_sqlalchemy: bool) -> DBAPIError:
    run = send if past_sqlalchemy else Connection.exec_driver_sql
    with pytest.raises(DBAPIError) as caught, transaction(engine) as connection:
        run(connection, failing(state))
    return caught.value


@pytest.mark.parametrize("past_sqlalchemy", [False, True])
@pytest.mark.parametrize("state", UNFIT)
def test_an_unfit_server_is_an_outage_and_every_connection_to_it_is_replaced(
    engine: Engine, state: str, past_sqlalchemy: bool
) -> None:
    with reading(engine), reading(engine):
        pass  # two connections wait in the pool
    before = {process(engine)}
    with reading(engine) as first, reading(engine) as second:
        before |= {driver_connection(one).info.backend_pid for one in (first, second)}
    assert is_passing(fail(engine, state, past_sqlalchemy=past_sqlalchemy))
    with reading(engine) as first, reading(engine) as second:
        after = {driver_connection(one).info.backend_pid for one in (first, second)}
    assert not before & after


@pytest.mark.parametrize("past_sqlalchemy", [False, True])
@pytest.mark.parametrize("state", RACE_LOST)
def test_a_lost_race_is_an_outage_and_the_connection_stays(
    engine: Engine, state: str, past_sqlalchemy: bool
) -> None:
    before = process(engine)
    assert is_passing(fail(engine, state, past_sqlalchemy=past_sqlalchemy))
    assert process(engine) == before


@pytest.mark.parametrize("state", DEFECTS)
def test_a_defect_is_no_outage(engine: Engine, state: str) -> None:
    before = process(engine)
    assert not is_passing(fail(engine, state, past_sqlalchemy=False))
    assert process(engine) == before


def test_a_second_attempt_follows_even_a_long_first_one(engine: Engine) -> None:
    attempts = 0
    for attempt in patiently(0.0):
        with attempt, transaction(engine) as connection:
            attempts += 1
            if attempts == 1:
                connection.exec_driver_sql(failing("40P01"))
    assert attempts == 2


def test_no_error_shows_what_was_asked_for(database_url: str) -> None:
    engine = open_engine(make_url(database_url))
    with pytest.raises(DBAPIError) as caught, transaction(engine) as connection:
        connection.execute(text("SELECT no_such_column, :given"), {"given": "secret-value"})
    assert "no_such_column" in str(caught.value)
    assert "secret-value" not in str(caught.value)
    engine.dispose()


def test_a_lock_that_is_not_had_in_sqlite_is_an_outage(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.db.core.engine.BUSY_TIMEOUT_SECONDS", 0)
    engine = open_engine(make_url(sqlite_url))
    with (
        transaction(engine),
        pytest.raises(DBAPIError) as caught,
        transaction(engine),
    ):
        pass
    assert is_passing(caught.value)
    engine.dispose()
