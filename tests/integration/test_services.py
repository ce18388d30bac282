"""The tests' own services keep their promises: killed, they come back; ended, nothing is left."""

from __future__ import annotations

import os
import signal
import sys

import pytest
import sqlalchemy as sa

from tests.conftest import StartProcess
from tests.support import services
from tests.support.services import PostgresServer, RedisServer, alive

_PARENT = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], process_group=0)
print("child", child.pid, "is ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("appendonly", [False, True])
def test_redis_killed_keeps_what_its_setting_says(appendonly: bool) -> None:
    server = RedisServer(appendonly=appendonly)
    try:
        server.start()
        with server.client() as client:
            client.set("key", "value")
        server.restart(kill=True)
        with server.client() as client:
            assert client.get("key") == (b"value" if appendonly else None)
    finally:
        server.close()
    assert not server.directory.exists()


def test_postgres_killed_keeps_what_was_committed() -> None:
    server = PostgresServer()
    try:
        engine = sa.create_engine(server.start().url(), poolclass=sa.NullPool)
        with engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE t AS SELECT 1 AS a"))
        server.kill()
        server.start()
        server.restart(immediate=True)
        with engine.connect() as connection:
            assert connection.scalar(sa.text("SELECT a FROM t")) == 1
    finally:
        server.close()
    assert not server.directory.exists()


def test_each_test_has_an_empty_database(database_url: str) -> None:
    engine = sa.create_engine(database_url)
    try:
        assert sa.inspect(engine).get_table_names() == []
        with engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE seen (a INTEGER)"))
    finally:
        engine.dispose()


def test_a_database_is_copied_from_a_template(postgres_server: PostgresServer) -> None:
    template = postgres_server.create_database()
    engine = sa.create_engine(postgres_server.url(template), poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE copied (a INTEGER)"))
    name = postgres_server.create_database(template)
    copy = sa.create_engine(postgres_server.url(name), poolclass=sa.NullPool)
    assert sa.inspect(copy).get_table_names() == ["copied"]
    postgres_server.drop_database(name)
    postgres_server.drop_database(template)


def test_a_process_ends_with_all_it_started(start_process: StartProcess) -> None:
    process = start_process((sys.executable, "-c", _PARENT), ready="is ready")
    (child,) = process.children()
    process.signal(signal.SIGTERM)  # which it ignores
    process.kill()
    assert alive(child), "kill() is for the main process alone"
    process.close()
    assert not alive(child)
    assert process not in services._started


def test_a_process_that_ends_at_once_fails_with_its_output(start_process: StartProcess) -> None:
    with pytest.raises(AssertionError, match="no such thing"):
        start_process((sys.executable, "-c", "raise SystemExit('no such thing')"), ready="never")


@pytest.mark.parametrize(
    ("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)]
)
def test_a_missing_service_fails_only_in_ci(
    ci: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "CI", ci)
    with pytest.raises(outcome, match="no-such-program is not installed"):
        services.require("no-such-program")
