"""Every service of ``docker-compose.yml`` as a process, by its own command and environment.

There is no container engine here, so what only an engine can show (image, volumes, networks) is
not shown; commands, environment, order and what they come to together are.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import func, select

from scheduler.client import Client
from tests.support import compose
from tests.support.pace import limit
from tests.support.services import PostgresServer, Process, free_port, require, wait_until
from worker.db.core.engine import engine_for, reading
from worker.db.tables.main import backends, operations, shares

PASSWORD = "s3cret-of-the-test"
CREATES = 200


class Stack:
    """The services, their names in the network replaced by addresses of this machine."""

    def __init__(self, directory: Path, postgres: PostgresServer) -> None:
        self.directory = directory
        self.postgres = postgres
        self.redis_port, self.health_port, self.flower_port = (free_port() for _ in range(3))
        self.services = compose.load(
            {
                "POSTGRES_PASSWORD": PASSWORD,
                "REDIS_PASSWORD": PASSWORD,
                "FLOWER_BASIC_AUTH": f"admin:{PASSWORD}",
            }
        )
        self.processes: list[Process] = []
        config = (compose.FILE.parent / "docs/examples/compose.toml").read_text()
        self.config = directory / "sharewright.toml"
        self.config.write_text(config.replace("/var/lib/sharewright", str(directory / "state")))

    def _here(self, text: str) -> str:
        replaced = {
            "@postgres:5432": f"@127.0.0.1:{self.postgres.port}",
            "@redis:6379": f"@127.0.0.1:{self.redis_port}",
            "/etc/sharewright/sharewright.toml": str(self.config),
            "--port=5555": f"--port={self.flower_port}",
            "0.0.0.0": "127.0.0.1",
        }
        for name, address in replaced.items():
            text = text.replace(name, address)
        return str(self.health_port) if text == "8776" else text

    def environment(self, name: str) -> dict[str, str]:
        return {key: self._here(value) for key, value in self.services[name].environment.items()}

    def start(self, name: str, *extra: str, log: str | None = None) -> Process:
        program, *arguments = self.services[name].command
        found = Path(sys.executable).with_name(program)
        command = (
            str(found) if found.exists() else require(program),
            *(self._here(argument) for argument in arguments),
            *extra,
        )
        process = Process(
            command, log=self.directory / f"{log or name}.log", env=self.environment(name)
        )
        self.processes.append(process)
        return process.start()

    @property
    def database_url(self) -> str:
        return self.environment("worker")["SHAREWRIGHT_DATABASE__URL"]

    def close(self) -> None:
        for process in reversed(self.processes):
            process.close()
        engine_for(self.database_url).dispose()


@pytest.fixture
def stack(tmp_path: Path, postgres_server: PostgresServer) -> Iterator[Stack]:
    with psycopg.connect(
        host="127.0.0.1",
        port=postgres_server.port,
        user="postgres",
        dbname="postgres",
        autocommit=True,
    ) as connection:
        connection.execute("DROP DATABASE IF EXISTS sharewright WITH (FORCE)")
        connection.execute("DROP ROLE IF EXISTS sharewright")
        connection.execute("CREATE ROLE sharewright LOGIN")
        connection.execute("CREATE DATABASE sharewright OWNER sharewright")
    stack = Stack(tmp_path, postgres_server)
    try:
        yield stack
    finally:
        stack.close()


def _get(url: str, headers: Mapping[str, str] | None = None) -> bytes:
    request = urllib.request.Request(url, headers=dict(headers or {}))
    with urllib.request.urlopen(request, timeout=limit()) as answer:
        body: bytes = answer.read()
        return body


def test_the_whole_composition_creates_shares(stack: Stack) -> None:
    stack.start(
        *("redis", "--port", str(stack.redis_port), "--bind", "127.0.0.1"),
        *("--dir", str(stack.directory)),
    )
    for number in range(2):  # a second migration is harmless
        migration = stack.start("migrate", log=f"migrate-{number}")
        assert migration.wait() == 0, migration.output()
    roles = ("scheduler", "scheduler-reads", "reconciler", "health", "flower")
    long_lived = [stack.start(name) for name in roles]
    long_lived += [stack.start("worker", "--name", f"w{n}", log=f"worker-{n}") for n in range(3)]

    def reported() -> bool:
        with reading(engine_for(stack.database_url)) as connection:
            return bool(
                connection.execute(
                    select(func.count())
                    .select_from(backends)
                    .where(backends.c.reported_at.is_not(None))
                ).scalar_one()
            )

    wait_until(reported, "the backend has reported")
    environment = stack.environment("worker")
    client = Client(
        environment["SHAREWRIGHT_BROKER__URL"], environment["SHAREWRIGHT_BROKER__RESULT_BACKEND"]
    )
    payload = {"version": 1, "context": {"project_id": "p1"}}
    network = client.result(
        client.submit("create_share_network", {**payload, "flat_network_ip_pool": ["10.0.0.0/24"]}),
        timeout=limit(),
    )["id"]
    began = time.monotonic()
    ids = [f"compose-{number}" for number in range(CREATES)]
    for operation_id in ids:
        client.send(
            "create_share",
            {**payload, "size": 1, "share_network_id": network},
            operation_id=operation_id,
        )
    for operation_id in ids:
        made = client.result(operation_id, timeout=limit())
        assert made["status"] == "available"
    client.close()
    print(f"{CREATES} creates in {time.monotonic() - began:.1f} s")
    with reading(engine_for(stack.database_url)) as connection:
        done = connection.execute(
            select(func.count()).select_from(operations).where(operations.c.state == "succeeded")
        ).scalar_one()
        made_shares = connection.execute(select(func.count()).select_from(shares)).scalar_one()
    assert (done, made_shares) == (CREATES + 1, CREATES)
    ready = json.loads(_get(f"http://127.0.0.1:{stack.health_port}/readyz"))
    assert ready
    metrics = _get(f"http://127.0.0.1:{stack.health_port}/metrics").decode()
    assert "sharewright_operations" in metrics
    assert _get(f"http://127.0.0.1:{stack.flower_port}/healthcheck") == b"OK"
    for process in long_lived:
        assert process.running, process.output()[-2000:]
        assert PASSWORD not in process.output()
