"""Fixtures that give a test real services; see :mod:`tests.support.services`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import pytest
from openstack.connection import Connection

from tests.openstack.baremetal import BARE_METAL
from tests.openstack.clearing import clear
from tests.openstack.cloud import OpenStack
from tests.openstack.compute import COMPUTE
from tests.support.pace import TEST_SECONDS, factor, slowed
from tests.support.services import PostgresServer, Process, RedisServer


def pytest_configure(config: pytest.Config) -> None:
    """Measure the pace before there are processes beside this one that would be measured too."""
    if config.option.timeout is None:
        config.option.timeout = slowed(TEST_SECONDS)


def pytest_report_header() -> str:
    return f"pace: limits of waiting are {factor():.1f} times those of an idle machine"


class StartProcess(Protocol):
    """What :func:`start_process` gives."""

    def __call__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        ready: str | Callable[[], bool] | None = None,
    ) -> Process: ...


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """One Redis for the whole run; tests ask for :func:`redis_server`, which empties it."""
    server = RedisServer()
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """An empty Redis. A test that kills one makes its own :class:`RedisServer`."""
    with shared_redis.client() as client:
        client.flushall()
    return shared_redis


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One PostgreSQL for the whole run, without a deadlock. A test that kills one makes its own."""
    server = PostgresServer()
    try:
        yield server.start()
        assert server.deadlocks() == 0, (
            f"PostgreSQL resolved deadlocks; the one lock order is the object, then its "
            f"operation. From its log:\n{server.deadlock_reports()}"
        )
    finally:
        server.close()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """An empty database of the test's own in PostgreSQL."""
    name = postgres_server.create_database()
    try:
        yield postgres_server.url(name)
    finally:
        postgres_server.drop_database(name)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """An empty database of the test's own in SQLite."""
    return f"sqlite:///{tmp_path / 'sharewright.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """An empty database; the test runs once on each kind."""
    kind = {"sqlite": "sqlite_url", "postgresql": "postgres_url"}[request.param]
    url: str = request.getfixturevalue(kind)
    return url


@pytest.fixture(scope="session")
def openstack() -> Iterator[OpenStack]:
    """Keystone and Neutron for the whole run; tests leave in them what was there."""
    cloud = OpenStack()
    try:
        yield cloud.start()
    finally:
        cloud.close()


@pytest.fixture(scope="session")
def openstack_with_nova() -> Iterator[OpenStack]:
    """As :func:`openstack`, and Nova; it takes far longer to start."""
    cloud = OpenStack(COMPUTE)
    try:
        yield cloud.start()
    finally:
        cloud.close()


@pytest.fixture(scope="session")
def openstack_with_ironic() -> Iterator[OpenStack]:
    """As :func:`openstack`, and Ironic."""
    cloud = OpenStack(BARE_METAL)
    try:
        yield cloud.start()
    finally:
        cloud.close()


@pytest.fixture
def cleared(admin: Connection) -> Iterator[None]:
    """Whatever happened, the next test finds nothing of this one in the module's cloud.

    A module uses it in every test, and gives the fixture ``admin``.
    """
    yield
    clear(admin)


@pytest.fixture
def start_process(tmp_path: Path) -> Iterator[StartProcess]:
    """Starts commands in sessions of their own; all are killed when the test ends."""
    processes: list[Process] = []

    def start(
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        ready: str | Callable[[], bool] | None = None,
    ) -> Process:
        process = Process(command, log=tmp_path / f"process-{len(processes)}.log", env=env)
        processes.append(process)
        return process.start(ready)

    try:
        yield start
    finally:
        for process in processes:
            process.close()
