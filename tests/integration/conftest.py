"""A scheduler alone, for the tests of the intake."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests.support.intake import Intake
from tests.support.services import PostgresServer, RedisServer


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def intake(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    shared_redis: RedisServer,
) -> Iterator[Intake]:
    directory = tmp_path_factory.mktemp("intake")
    url = f"sqlite:///{directory / 'sharewright.db'}"
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres_server")
        url = server.url(server.create_database())
    with shared_redis.client() as client:
        client.flushall()
    made = Intake(directory, url, shared_redis)
    try:
        made.role("scheduler", "--pool", "prefork", "--concurrency", "3")
        yield made
    finally:
        made.close()


@pytest.fixture
def project() -> str:
    return f"project-{uuid.uuid4()}"
