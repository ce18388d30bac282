"""A crowd of messages that no task can be run for costs the others nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from click.testing import CliRunner
from sqlalchemy import func, insert, select, text

from scheduler.cli import cli
from scheduler.service.dead_letters import drop_all
from tests.support.deployment import Deployment
from tests.support.services import RedisServer, wait_until
from worker.config import load
from worker.db import dead_letters as store
from worker.db.core.engine import db_now, engine_for, reading, transaction
from worker.db.schema import upgrade
from worker.db.tables.main import counters, dead_letters
from worker.messaging.consumer import HOUR, HourlyLimit

CROWD: Final = 1000
LIMIT: Final = 200
DAY: Final = 86400.0


def connections_opened(deployment: Deployment) -> int:
    """How many connections this database has seen."""
    with deployment.engine.connect() as connection:
        return int(
            connection.execute(
                text("SELECT sessions FROM pg_stat_database WHERE datname = current_database()")
            ).scalar_one()
        )


def kept(deployment: Deployment) -> int:
    with reading(deployment.engine) as connection:
        return int(connection.execute(select(func.count(dead_letters.c.id))).scalar_one())


def dropped(deployment: Deployment) -> int:
    with reading(deployment.engine) as connection:
        counted = select(counters.c.value).where(
            counters.c.name == "dead_letters_dropped_total:requests"
        )
        return int(connection.execute(counted).scalar() or 0)


def test_a_crowd_of_misspelt_requests(
    tmp_path: Path, postgres_url: str, redis_server: RedisServer
) -> None:
    """Each of a thousand once opened a connection: a sound request waited 83 s behind them."""
    deployment = Deployment(tmp_path, postgres_url, redis_server)
    try:
        deployment.role("scheduler")
        payload = deployment.payload()
        deployment.client.read("list_shares", payload)
        # The first one opens the main process's connection, and is kept.
        deployment.client.send("creat_share", payload, operation_id="first")
        wait_until(lambda: kept(deployment) == 1, "it is kept")
        before = connections_opened(deployment)
        for number in range(CROWD - 1):
            deployment.client.send("creat_share", payload, operation_id=f"misspelt-{number}")
        deployment.network()  # a sound request behind them, in the same queue
        wait_until(
            lambda: kept(deployment) + dropped(deployment) == CROWD, "all are kept or counted"
        )
        assert kept(deployment) == LIMIT
        assert dropped(deployment) == CROWD - LIMIT
        assert connections_opened(deployment) - before <= 5
        with redis_server.client() as client:
            assert client.llen("requests") == 0
            assert client.hlen("unacked") == 0
        log = deployment.processes["scheduler"].output()
        assert log.count("Set aside a message") == LIMIT
        assert log.count("more are dropped and only counted") == 1
    finally:
        deployment.close()


def test_the_allowance_is_a_queue_s_and_an_hour_s() -> None:
    now = 0.0
    limit = HourlyLimit(2, lambda: now)
    assert [limit.allows("a") for _ in range(4)] == [True, True, False, False]
    assert [limit.allows("b") for _ in range(3)] == [True, True, False]
    now = HOUR
    assert [limit.allows("a") for _ in range(3)] == [True, True, False]


@pytest.fixture
def aged(database_url: str, tmp_path: Path) -> Path:
    """A configuration whose database keeps six messages: 0 to 5 days old, of two queues."""
    upgrade(database_url)
    with transaction(engine_for(database_url)) as connection:
        for age in range(5, -1, -1):
            connection.execute(
                insert(dead_letters).values(
                    fingerprint=str(age),
                    queue="requests" if age % 2 else "steps.default.0",
                    reason="it is a test's",
                    headers={},
                    body="",
                    size=1,
                    received_at=db_now() - age * DAY,
                )
            )
    config = tmp_path / "sharewright.toml"
    config.write_text(f'[database]\nurl = "{database_url}"\n')
    return config


def left(database_url: str) -> list[str]:
    with reading(engine_for(database_url)) as connection:
        rows = connection.execute(select(dead_letters.c.fingerprint).order_by(dead_letters.c.id))
        return [row.fingerprint for row in rows]


def test_many_are_dropped_at_once(aged: Path, database_url: str) -> None:
    config = load(aged)
    assert drop_all(config, queue=None, older_than=4.5 * DAY) == 1
    assert drop_all(config, queue="requests", older_than=2 * DAY) == 1
    assert left(database_url) == ["4", "2", "1", "0"]
    assert drop_all(config, queue="requests", older_than=None) == 1
    assert drop_all(config, queue=None, older_than=None) == 3
    assert left(database_url) == []


@pytest.mark.parametrize("arguments", [(), ("1", "--all"), ("1", "--queue", "requests")])
def test_the_command_wants_one_or_many(arguments: tuple[str, ...]) -> None:
    ended = CliRunner().invoke(cli, ["dead-letter", "drop", *arguments])
    assert ended.exit_code == 2
    assert "--older-than" in ended.output


def test_they_are_purged_when_they_are_old(aged: Path, database_url: str) -> None:
    del aged
    with transaction(engine_for(database_url)) as connection:
        assert store.purge(connection, 2.5 * DAY, 2) == 2
        assert store.purge(connection, 2.5 * DAY, 2) == 1
        assert store.purge(connection, 2.5 * DAY, 2) == 0
    assert left(database_url) == ["2", "1", "0"]
