"""Connections to PostgreSQL that are open and say nothing any more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from tests.support.forwarder import Forwarder
from tests.support.services import PostgresServer
from worker.db.core.engine import open_engine, reading, transaction
from worker.db.core.outages import is_passing, patiently
from worker.db.core.postgresql import driver_connection, send


@pytest.fixture
def forwarder(postgres_server: PostgresServer) -> Iterator[Forwarder]:
    with Forwarder(postgres_server.port) as forwarder:
        yield forwarder


@pytest.fixture
def engine(
    postgres_url: str, forwarder: Forwarder, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Engine]:
    monkeypatch.setattr("worker.db.core.postgresql.SILENCE_SECONDS", 1)
    engine = open_engine(make_url(postgres_url).set(port=forwarder.port))
    yield engine
    engine.dispose()


@pytest.mark.parametrize("run", [send, lambda c, s: c.execute(text(s))])
def test_a_silent_connection_is_an_outage_and_is_replaced(
    engine: Engine, forwarder: Forwarder, run: object
) -> None:
    assert callable(run)
    with reading(engine), reading(engine):
        pass  # two connections wait in the pool
    assert forwarder.silence() == 2
    with pytest.raises(DBAPIError, match="has not answered") as caught, reading(engine) as one:
        run(one, "SELECT 1")
    assert is_passing(caught.value)
    with reading(engine) as one, reading(engine) as other:
        assert run(one, "SELECT 1").fetchone()[0] == run(other, "SELECT 1").fetchone()[0] == 1


def test_silence_at_a_commit_is_an_outage(engine: Engine, forwarder: Forwarder) -> None:
    silent = 0
    for attempt in patiently():
        with attempt, transaction(engine) as connection:
            connection.execute(text("SELECT 1"))
            if not silent:
                silent = forwarder.silence()
    assert silent == 1


def test_a_server_that_is_only_slow_is_not_silent_to_a_migration(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.db.core.postgresql.SILENCE_SECONDS", 0)
    engine = open_engine(make_url(postgres_url), limited=False)
    with transaction(engine) as connection:
        assert connection.execute(text("SHOW statement_timeout")).scalar_one() == "0"
        connection.execute(text("SELECT pg_sleep(0.5)"))
    engine.dispose()


def test_a_host_that_vanishes_is_noticed_in_seconds(engine: Engine) -> None:
    with reading(engine) as connection:
        options = driver_connection(connection).info.get_parameters()
    assert {name: options[name] for name in options if "keepalives" in name or "time" in name} == {
        "connect_timeout": "10",
        "keepalives": "1",
        "keepalives_idle": "5",
        "keepalives_interval": "2",
        "keepalives_count": "3",
        "tcp_user_timeout": "10000",
    }


def test_the_operators_timeouts_go_before_ours(postgres_url: str) -> None:
    url = make_url(postgres_url).update_query_dict({"connect_timeout": "3"})
    engine = open_engine(url)
    with reading(engine) as connection:
        options = driver_connection(connection).info.get_parameters()
        assert options["connect_timeout"] == "3"
        asked = connection.execute(text("SHOW statement_timeout")).scalar_one()
    assert asked == "10s"
    engine.dispose()
