"""Placement keeps a project's shares of one share network where a server for it stands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Table, select

from tests.support.deployment import FAKE_BACKEND
from tests.support.fakes import Fakes
from tests.support.pace import limit
from tests.support.services import RedisServer, wait_until
from worker.db.core.engine import reading
from worker.db.tables.main import share_servers, shares

Start = Callable[[int], Fakes]


@pytest.fixture
def start(tmp_path: Path, database_url: str, redis_server: RedisServer) -> Iterator[Start]:
    """Start three backends that are alike, with a limit of shares on one server."""
    started: list[Fakes] = []

    def begin(limit: int) -> Fakes:
        alike = FAKE_BACKEND + f"max_shares_per_share_server = {limit}\n"
        names = ("b0", "b1", "b2")
        settings = "".join(alike.replace("backends.fake", f"backends.{name}") for name in names)
        started.append(Fakes(tmp_path, database_url, redis_server, settings))
        started[0].start(workers=1, concurrency=2).wait_reported(3)
        return started[0]

    yield begin
    for deployment in started:
        deployment.close()


def on_backends(deployment: Fakes, table: Table) -> Counter[str]:
    with reading(deployment.engine) as connection:
        return Counter(connection.execute(select(table.c.backend)).scalars())


def test_a_server_is_filled_before_another_is_built(start: Start) -> None:
    fakes = start(4)

    def create(network: str) -> str:
        return str(fakes.client.result(fakes.create(network), timeout=limit())["backend"])

    network = fakes.network()
    first = create(network)
    assert [create(network) for _ in range(3)] == [first] * 3
    assert on_backends(fakes, share_servers) == {first: 1}
    second = create(network)
    assert second != first, "its server there is full: the share goes where the fewest are"
    assert [create(network) for _ in range(3)] == [second] * 3
    assert on_backends(fakes, share_servers) == {first: 1, second: 1}
    third = create(fakes.network(cidr="10.9.0.0/24"))
    assert third not in {first, second}, "no server for this one stands: spread as ever"


def test_shares_asked_for_at_once_meet_before_their_server_has_a_row(start: Start) -> None:
    fakes = start(0)
    network = fakes.network()
    fakes.processes["worker-0"].close()
    for _ in range(12):
        fakes.create(network)
    wait_until(lambda: fakes.count(shares) == 12, "all are taken in")
    assert fakes.count(share_servers) == 0
    assert len(on_backends(fakes, shares)) == 1
    fakes.worker("worker-0", concurrency=2)
    fakes.settle()
    assert fakes.count_available() == 12
    assert fakes.count(share_servers) == 1


def test_another_project_has_no_server_there(start: Start) -> None:
    fakes = start(0)
    network = fakes.network()
    fakes.ask("publish_share_network", admin=True, share_network_id=network)
    asked = [fakes.create(network, project=f"p{number}") for number in (1, 2, 3)]
    made = [fakes.client.result(one, timeout=limit())["backend"] for one in asked]
    assert sorted(made) == ["b0", "b1", "b2"]
    assert on_backends(fakes, share_servers) == Counter(made)
