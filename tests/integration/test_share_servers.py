"""Share servers: one builder at a time, what failed builders leave, limits, and clean-up."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from tests.support.deployment import FAKE_BACKEND
from tests.support.fakes import Fakes
from tests.support.pace import limit, slowed
from tests.support.services import RedisServer, wait_until
from worker.db.core.engine import reading
from worker.db.tables.main import share_servers, shares

SLOW_BOOT = FAKE_BACKEND + "[backends.fake.compute]\nboot_seconds = 1.5\n"


@pytest.fixture
def fakes(tmp_path: Path, postgres_url: str, redis_server: RedisServer) -> Iterator[Fakes]:
    deployment = Fakes(
        tmp_path,
        postgres_url,
        redis_server,
        SLOW_BOOT,
        engine={"retry_time": slowed(2.0), "lease": slowed(10.0)},
    )
    try:
        yield deployment.start(workers=2, concurrency=1)
    finally:
        deployment.close()


def statuses(fakes: Fakes, network: str) -> Counter[str]:
    with reading(fakes.engine) as connection:
        rows = connection.execute(
            select(shares.c.status).where(shares.c.share_network_id == network)
        )
        return Counter(row.status for row in rows)


def create_many(fakes: Fakes, network: str, count: int, mark: str) -> None:
    for number in range(count):
        fakes.client.send(
            "create_share",
            fakes.payload(size=1, share_network_id=network),
            operation_id=f"{mark}-{number}",
        )


@pytest.mark.parametrize(
    ("kind", "times", "errors", "builds"),
    [("fatal", 2, 2, 1), ("retryable", 2, 0, 1), ("fatal", 1000, 200, 0)],
)
def test_two_hundred_creates_whose_builders_fail(
    fakes: Fakes, kind: str, times: int, errors: int, builds: int
) -> None:
    """For good: each failure costs its builder only, and three in a row cost all."""
    network = fakes.network()
    others = [fakes.network(cidr=f"10.3.{number}.0/24") for number in range(5)]
    # Every create is asked for before the first builder fails.
    boots = slowed(12.0)
    fakes.world.arm("get_share_server", "not_ready", times=1, match=network, seconds=boots)
    fakes.world.arm("get_share_server", kind, times=times, match=network)
    create_many(fakes, network, 200, "same")
    for number, other in enumerate(others):
        create_many(fakes, other, 10, f"other-{number}")
    wait_until(
        lambda: sum(statuses(fakes, other)["available"] for other in others) == 50,
        "the others' shares are available",
    )
    fakes.settle()
    # Waiting held no worker: no step lasted as long as a server takes to boot.
    assert (
        max(call.finished - call.started for call in fakes.world.calls() if call.finished) < boots
    )
    assert statuses(fakes, network) == Counter(
        {name: count for name, count in (("error", errors), ("available", 200 - errors)) if count}
    )
    world = fakes.world
    built = world.calls("get_share_server", effect=True)
    assert len(world.servers()) == len(built) == builds + len(others)
    failed = [call for call in world.calls("get_share_server") if call.outcome == "Fatal"]
    assert len(failed) == (0 if kind == "retryable" else min(times, 3))
    assert len(world.ports()) == builds + len(others)
    with reading(fakes.engine) as connection:
        rows = connection.execute(
            select(
                share_servers.c.status,
                share_servers.c.error,
                share_servers.c.network_info,
                share_servers.c.shares,
            )
        ).all()
    # Each failed build left its reason to be seen, and nothing else.
    seen = [row for row in rows if row.status == "error"]
    assert len(seen) == len(failed)
    assert len(rows) == len(seen) + builds + len(others)
    assert all("was told" in row.error["message"] for row in seen)
    assert all((row.network_info, row.shares) == (None, 0) for row in seen)


def test_limits_are_never_overrun(
    tmp_path: Path, postgres_url: str, redis_server: RedisServer
) -> None:
    """Ten shares a server, 95 creates at once: ten servers, none above ten."""
    settings = FAKE_BACKEND + "max_shares_per_share_server = 10\n"
    deployment = Fakes(tmp_path, postgres_url, redis_server, settings)
    try:
        deployment.start(workers=2, concurrency=2)
        network = deployment.network()
        create_many(deployment, network, 95, "limited")
        wait_until(lambda: deployment.count_available() == 95, "all are available")
        with reading(deployment.engine) as connection:
            used = [row.shares for row in connection.execute(select(share_servers.c.shares))]
            held = Counter(
                row.share_server_id for row in connection.execute(select(shares.c.share_server_id))
            )
        assert len(used) == 10
        assert max(used) <= 10
        assert sum(used) == 95
        assert sorted(held.values()) == sorted(used)
    finally:
        deployment.close()


def test_clean_up_races_creates(
    tmp_path: Path, postgres_url: str, redis_server: RedisServer
) -> None:
    """200 rounds with idle time 0: no share on a deleted server, no two servers for one."""
    deployment = Fakes(tmp_path, postgres_url, redis_server)
    try:
        deployment.start(workers=2, concurrency=2)
        networks = [deployment.network(cidr=f"10.4.{number}.0/24") for number in range(4)]
        failures: list[str] = []
        threads = [
            threading.Thread(target=_rounds, args=(deployment, network, number, failures))
            for number, network in enumerate(networks)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        deployment.settle()
        deployment.assert_nothing_external()
        refused = [call for call in deployment.world.calls() if call.outcome == "Fatal"]
        assert refused == []  # the world refuses a share on a server that is gone
    finally:
        deployment.close()


def _rounds(deployment: Fakes, network: str, seed: int, failures: list[str]) -> None:
    """Delete the last share and create the next at nearly the same moment, 50 times."""
    chance = random.Random(seed)
    share = deployment.client.result(deployment.create(network), timeout=limit())["id"]
    for number in range(50):
        delete, create = f"d-{seed}-{number}", f"c-{seed}-{number}"
        asked = deployment.payload(size=1, share_network_id=network)
        gone = deployment.payload(share_id=share)
        first, second = ("delete_share", gone, delete), ("create_share", asked, create)
        if chance.random() < 0.5:
            first, second = second, first
        deployment.client.send(first[0], first[1], operation_id=first[2])
        time.sleep(chance.random() * 0.02)
        deployment.client.send(second[0], second[1], operation_id=second[2])
        deployment.client.result(delete, timeout=limit())
        share = deployment.client.result(create, timeout=limit())["id"]
        with reading(deployment.engine) as connection:
            live = connection.execute(
                select(share_servers.c.id).where(
                    share_servers.c.share_network_id == network,
                    share_servers.c.status.in_(("new", "building", "active")),
                )
            ).all()
        if len(live) != 1:
            failures.append(f"round {number} on {network}: {len(live)} live servers")
    deployment.ask("delete_share", share_id=share)
