"""Requests while the database is unwell: each gets its answer, by a producer of ten lines."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from celery import Celery
from sqlalchemy import text
from sqlalchemy.engine import make_url

from scheduler.exits import EXIT_CONFIGURATION
from tests.support.deployment import Deployment
from tests.support.intake import Intake
from tests.support.pace import limit
from tests.support.services import RedisServer, wait_until
from worker.db.core.engine import engine_for, transaction
from worker.db.schema import VERSION_TABLE
from worker.db.tables.main import shares

REQUESTS = 20
OUTAGE_SECONDS = 2.0


@pytest.fixture
def on_postgres(tmp_path: Path, postgres_url: str, redis_server: RedisServer) -> Iterator[Intake]:
    intake = Intake(tmp_path, postgres_url, redis_server)
    try:
        intake.role("scheduler")
        intake.accepted("create_share_network", "p", flat_network_ip_pool=["10.0.0.0/24"])
        yield intake
    finally:
        intake.close()


class Producer:
    """Plain Celery, as in docs/examples/producer.py."""

    def __init__(self, redis: RedisServer) -> None:
        self.app = Celery(broker=redis.url(), backend=redis.url(1))

    def send(self, verb: str, **fields: Any) -> str:
        want = {"version": 1, "context": {"project_id": "p"}, **fields}
        request_id = str(uuid.uuid4())
        self.app.send_task(
            f"sharewright.request.{verb}", [want], task_id=request_id, queue="requests"
        )
        return request_id

    def answer(self, request_id: str) -> Any:
        result = self.app.AsyncResult(request_id)
        return result.get(timeout=limit(), propagate=False)


def _crowd(producer: Producer) -> list[str]:
    """Requests that write and requests that read, in turn."""
    return [
        producer.send(
            "create_share_network", name=f"n{number}", flat_network_ip_pool=["10.0.0.0/24"]
        )
        if number % 2
        else producer.send("list_shares")
        for number in range(REQUESTS)
    ]


@contextmanager
def _failing(url: str, statement: str) -> Iterator[None]:
    """Let every acceptance run a statement of PL/pgSQL in the server, as long as this lasts."""
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION unwell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"{statement}; RETURN NEW; END $$"
        )
        connection.execute(
            "CREATE TRIGGER unwell BEFORE INSERT ON operations EXECUTE FUNCTION unwell()"
        )
        try:
            yield
        finally:
            connection.execute("DROP FUNCTION unwell CASCADE")


def _raise(state: str) -> str:
    return f"RAISE EXCEPTION 'the database is unwell' USING ERRCODE = '{state}'"


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param(_raise("25006"), id="read-only primary"),
        pytest.param(_raise("53100"), id="disk full"),
        pytest.param(_raise("53200"), id="out of memory"),
        pytest.param(_raise("53300"), id="too many connections"),
        pytest.param(_raise("55P03"), id="lock timeout"),
        pytest.param(_raise("57014"), id="statement timeout"),
        pytest.param(_raise("57P01"), id="shutting down"),
        pytest.param(_raise("58030"), id="input/output error"),
        pytest.param(_raise("40001"), id="serialization failure"),
        pytest.param(_raise("40P01"), id="deadlock"),
        pytest.param("PERFORM pg_terminate_backend(pg_backend_pid())", id="connection lost"),
    ],
)
def test_an_outage_loses_no_request(
    on_postgres: Intake, redis_server: RedisServer, statement: str
) -> None:
    producer = Producer(redis_server)
    with _failing(on_postgres.database_url, statement):
        asked = _crowd(producer)
        time.sleep(OUTAGE_SECONDS)
    answers = [producer.answer(request_id) for request_id in asked]
    assert all(isinstance(answer, dict) for answer in answers), answers


def test_a_message_goes_back_to_its_queue_while_an_outage_lasts(
    on_postgres: Intake, redis_server: RedisServer
) -> None:
    """A real read-only primary, for longer than the scheduler waits with a message in hand."""
    producer = Producer(redis_server)
    name = make_url(on_postgres.database_url).database
    _alter(on_postgres, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    asked = _crowd(producer)
    log = on_postgres.directory / "scheduler.log"
    wait_until(lambda: "back to the broker" in log.read_text(), "a request was given back")
    _alter(on_postgres, f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
    answers = [producer.answer(request_id) for request_id in asked]
    assert all(isinstance(answer, dict) for answer in answers), answers


def _alter(intake: Intake, statement: str) -> None:
    """Change a setting of the database; sessions that are open end, and meet it anew."""
    url = make_url(intake.database_url).set(drivername="postgresql", database="postgres")
    plain = url.render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(statement)  # type: ignore[call-overload] # a name cannot be a parameter
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
            (make_url(intake.database_url).database,),
        )


def test_a_defect_is_answered_as_internal(on_postgres: Intake, redis_server: RedisServer) -> None:
    producer = Producer(redis_server)
    with _failing(on_postgres.database_url, _raise("22012")):
        asked = _crowd(producer)
        answers = [producer.answer(request_id) for request_id in asked]
    failures = [answer for answer in answers if not isinstance(answer, dict)]
    assert len(failures) == REQUESTS // 2
    for request_id, failure in zip(asked[1::2], failures, strict=True):
        code, message, _object, _field = failure.args
        assert code == "internal"
        assert request_id in message
        assert "unwell" not in message  # what an error says inside may be a secret


def test_a_backend_that_is_gone_is_answered_as_configuration(
    on_postgres: Intake, redis_server: RedisServer
) -> None:
    """As for a scheduler that still runs on an older configuration than the others."""
    share = on_postgres.share("p")
    on_postgres.set(shares, share, backend="gone")
    producer = Producer(redis_server)
    for verb, fields in (
        ("delete_share", {}),
        ("extend_share", {"new_size": 2}),
        ("create_snapshot", {}),
        ("allow_access", {"access_to": "10.0.0.1"}),
    ):
        code, message, about, _ = producer.answer(
            producer.send(verb, share_id=share, **fields)
        ).args
        assert (code, about) == ("configuration", "backend gone")
        assert share in message


@pytest.mark.parametrize("role", [("scheduler",), ("reconciler",), ("worker",)])
def test_a_process_does_not_start_before_the_upgrade(
    tmp_path: Path, sqlite_url: str, redis_server: RedisServer, role: tuple[str, ...]
) -> None:
    deployment = Deployment(tmp_path, sqlite_url, redis_server)
    try:
        with transaction(engine_for(sqlite_url)) as connection:
            connection.execute(text(f"DELETE FROM {VERSION_TABLE}"))
        process = deployment.role(*role)
        assert process.wait() == EXIT_CONFIGURATION
        assert "sharewright db upgrade" in process.output()
    finally:
        deployment.close()


def test_a_process_starts_on_the_database_of_a_later_version(
    tmp_path: Path, sqlite_url: str, redis_server: RedisServer
) -> None:
    """As in an upgrade, where old and new processes run side by side."""
    deployment = Deployment(tmp_path, sqlite_url, redis_server)
    try:
        with transaction(engine_for(sqlite_url)) as connection:
            connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = 'later'"))
        deployment.role("scheduler")
        answer = deployment.client.submit("list_shares", deployment.payload(), timeout=limit())
        assert deployment.client.result(answer, timeout=limit())["shares"] == []
        assert "of a later version" in deployment.processes["scheduler"].output()
    finally:
        deployment.close()
