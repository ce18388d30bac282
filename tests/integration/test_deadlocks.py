"""Many operations at once on the same shares: no deadlock, and nobody waits for a lease."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import func, select

from scheduler.client import Client
from tests.support.fakes import Fakes
from tests.support.services import PostgresServer, RedisServer
from worker.db.core.engine import reading
from worker.db.tables.main import operations, shares

SHARES, PRODUCERS = 40, 4
LEASE = 60.0
"""So long that whatever waited for one is told from whatever waited for a slow machine."""


@pytest.fixture
def fakes(tmp_path: Path, postgres_url: str, redis_server: RedisServer) -> Iterator[Fakes]:
    site = Fakes(tmp_path, postgres_url, redis_server, engine={"lease": LEASE})
    try:
        yield site.start(workers=2, concurrency=2)
    finally:
        site.close()


def operations_on(number: int, share_id: str) -> list[tuple[str, dict[str, object]]]:
    """What an ordinary user asks for one share within a second."""
    share = {"share_id": share_id}
    return [
        ("extend_share", {**share, "new_size": 2}),
        ("allow_access", {**share, "access_to": f"10.1.{number}.1"}),
        ("create_snapshot", {**share}),
        ("allow_access", {**share, "access_to": f"10.1.{number}.2"}),
    ]


def send(site: Fakes, on: list[str], first: int) -> list[str]:
    """Send all operations on every so many-th share, as one producer; return their ids."""
    client = Client(site.redis.url(), site.redis.url(1))
    sent = []
    for number in range(first, len(on), PRODUCERS):
        for verb, fields in operations_on(number, on[number]):
            sent.append(str(uuid.uuid4()))
            client.send(verb, site.payload(**fields), operation_id=sent[-1])
    client.close()
    return sent


def test_a_hundred_and_sixty_operations_at_once_on_forty_shares(
    fakes: Fakes, postgres_server: PostgresServer
) -> None:
    fakes.role("scheduler", name="scheduler-2")
    network = fakes.network()
    sent = [fakes.create(network) for _ in range(SHARES)]
    shares_made = [fakes.client.result(one, timeout=120)["id"] for one in sent]
    before = postgres_server.deadlocks()
    with ThreadPoolExecutor(PRODUCERS) as pool:
        producers = [pool.submit(send, fakes, shares_made, first) for first in range(PRODUCERS)]
        sent = [operation_id for one in producers for operation_id in one.result()]
    assert len(sent) == 4 * SHARES
    for operation_id in sent:
        fakes.client.result(operation_id, timeout=240)
    with reading(fakes.engine) as connection:
        o = operations.c
        slowest, attempts = connection.execute(
            select(func.max(o.finished_at - o.accepted_at), func.max(o.attempts)).where(
                o.id.in_(sent)
            )
        ).one()
        sizes = set(connection.execute(select(shares.c.size)).scalars())
    assert sizes == {2}
    assert postgres_server.deadlocks() == before, postgres_server.deadlock_reports()
    assert slowest < LEASE, "an operation waited for a lease to run out"
    assert attempts <= 1
