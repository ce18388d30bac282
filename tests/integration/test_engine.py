"""The engine on the fakes: what fails is undone, what is shared is built once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select

from scheduler.service.health import holdings
from tests.support.deployment import FAKE_BACKEND
from tests.support.fakes import Fakes
from tests.support.pace import limit, slowed
from tests.support.services import RedisServer, wait_until
from worker.config import load
from worker.db.core.engine import reading
from worker.db.tables.main import counters, operations, share_server_refs, shares
from worker.systems.fake_world import World


@pytest.fixture
def fakes(tmp_path: Path, database_url: str, redis_server: RedisServer) -> Iterator[Fakes]:
    deployment = Fakes(tmp_path, database_url, redis_server, engine={"retry_time": 0.1})
    try:
        yield deployment.start()
    finally:
        deployment.close()


@pytest.mark.parametrize("kind", ["fatal", "fatal_after_effect"])
def test_a_failed_create_is_undone(fakes: Fakes, kind: str) -> None:
    """Also when the driver made the share and then raised."""
    network = fakes.network()
    fakes.world.arm("create_share", kind)
    operation_id = fakes.create(network)
    failure = fakes.failure(operation_id)
    assert failure.code == "storage_failed"
    assert failure.message
    fakes.settle()
    steps = fakes.steps_of(operation_id)
    assert steps == [
        ("allocate_network", "done"),
        ("get_share_server", "done"),
        ("create_share", "failed"),
        ("delete_share", "done"),
        ("delete_share_server", "done"),
        ("deallocate_network", "done"),
    ]
    with reading(fakes.engine) as connection:
        share = connection.execute(select(shares)).one()
    assert (share.status, share.allocated_gib) == ("error", 0)
    assert share.error["code"] == "storage_failed"
    assert share.error["message"] == failure.message
    fakes.assert_nothing_external()
    # The share in error can be deleted, and the next one works.
    assert fakes.ask("delete_share", share_id=share.id)["status"] == "deleted"
    assert fakes.client.result(fakes.create(network), timeout=limit())["status"] == "available"


def test_a_second_shares_failure_leaves_the_first_alone(fakes: Fakes) -> None:
    network = fakes.network()
    first = fakes.client.result(fakes.create(network), timeout=limit())
    before = fakes.world.servers()
    fakes.world.arm("create_share", "fatal_after_effect")
    second = fakes.create(network)
    fakes.failure(second)
    fakes.settle()
    assert [share["id"] for share in fakes.world.shares()] == [first["id"]]
    assert fakes.world.servers() == before
    assert fakes.count(share_server_refs) == 1
    # delete_share_server and deallocate_network ran for their reference, and touched nothing.
    assert [name for name, _ in fakes.steps_of(second)][-2:] == [
        "delete_share_server",
        "deallocate_network",
    ]
    assert fakes.world.calls("delete_share_server") == []
    assert fakes.world.calls("deallocate_network") == []


def test_a_failed_allocation_is_undone(fakes: Fakes) -> None:
    network = fakes.network()
    fakes.world.arm("allocate_network", "fatal_after_effect")
    operation_id = fakes.create(network)
    fakes.failure(operation_id)
    fakes.settle()
    assert [step[0] for step in fakes.steps_of(operation_id)] == [
        "allocate_network",
        "deallocate_network",
    ]
    fakes.assert_nothing_external()


def test_what_fails_for_a_while_is_tried_again(fakes: Fakes) -> None:
    network = fakes.network()
    fakes.world.arm("create_share", "retryable_after_effect")
    operation_id = fakes.create(network)
    assert fakes.client.result(operation_id, timeout=limit())["status"] == "available"
    assert ("create_share", "retry") in fakes.steps_of(operation_id)
    assert len(fakes.world.calls("create_share", effect=True)) == 1


def test_an_undo_that_fails_is_on_record_and_tried_on(
    tmp_path: Path, sqlite_url: str, redis_server: RedisServer
) -> None:
    slow = {"undo_retry_time": 0.1, "failed_undo_pause": 1.0}
    deployment = Fakes(tmp_path, sqlite_url, redis_server, engine=slow)
    try:
        deployment.start()
        network = deployment.network()
        deployment.world.arm("create_share", "fatal")
        deployment.world.arm("delete_share_server", "retryable", times=4)
        operation_id = deployment.create(network)
        failure = deployment.failure(operation_id)
        assert "Undoing it failed as well" in failure.message
        wait_until(lambda: deployment.operation_states().get("failed") == 1, "it is undone")
        deployment.assert_nothing_external()
    finally:
        deployment.close()


def test_a_delete_cancels_a_create(fakes: Fakes) -> None:
    network = fakes.network()
    fakes.world.arm("get_share_server", "not_ready", times=1000)
    operation_id = fakes.create(network)
    with reading(fakes.engine) as connection:
        share_id = connection.execute(
            select(operations.c.resource_id).where(operations.c.id == operation_id)
        ).scalar_one()
    assert fakes.ask("delete_share", share_id=share_id)["status"] == "deleted"
    assert fakes.failure(operation_id).code == "cancelled"
    fakes.assert_nothing_external()
    assert fakes.count(shares) == 0


def test_a_delete_meets_a_create_in_its_last_step(fakes: Fakes) -> None:
    """The step is done outside when its share is to be deleted: it is undone, at once."""
    network = fakes.network()
    fakes.world.arm("create_share", "hang", seconds=slowed(1.5))
    operation_id = fakes.create(network)
    with reading(fakes.engine) as connection:
        share_id = connection.execute(
            select(operations.c.resource_id).where(operations.c.id == operation_id)
        ).scalar_one()
    wait_until(lambda: bool(fakes.world.calls("create_share")), "create_share is begun")
    assert fakes.ask("delete_share", share_id=share_id)["status"] == "deleted"
    assert fakes.failure(operation_id).code in {"cancelled", "conflict"}
    fakes.settle()
    fakes.assert_nothing_external()


def test_a_share_whose_undo_failed_can_be_deleted(
    tmp_path: Path, sqlite_url: str, redis_server: RedisServer
) -> None:
    slow = {"undo_retry_time": 0.0, "failed_undo_pause": 2.0}
    deployment = Fakes(tmp_path, sqlite_url, redis_server, engine=slow)
    try:
        deployment.start()
        network = deployment.network()
        deployment.world.arm("create_share", "fatal_after_effect")
        deployment.world.arm("delete_share", "retryable", times=1)
        operation_id = deployment.create(network)
        assert "Undoing it failed" in deployment.failure(operation_id).message
        with reading(deployment.engine) as connection:
            share = connection.execute(select(shares)).one()
        assert (share.status, share.allocated_gib) == ("error", 1)
        deployment.ask("delete_share", share_id=share.id)
        wait_until(
            lambda: deployment.operation_states().get("failed") == 1, "the undo has ended", 20
        )
        deployment.settle()
        deployment.assert_nothing_external()
        assert deployment.count(shares) == 0
    finally:
        deployment.close()


def test_an_idle_server_goes_with_its_last_share(fakes: Fakes) -> None:
    network = fakes.network()
    made = [fakes.client.result(fakes.create(network), timeout=limit()) for _ in range(2)]
    assert len({share["share_server_id"] for share in made}) == 1
    fakes.ask("delete_share", share_id=made[0]["id"])
    fakes.settle()
    assert len(fakes.world.servers()) == 1
    fakes.ask("delete_share", share_id=made[1]["id"])
    fakes.settle()
    fakes.assert_nothing_external()
    assert fakes.ask("delete_share_network", share_network_id=network)["status"] == "deleted"


def test_a_thousand_creates_over_forty_networks(
    tmp_path: Path, postgres_url: str, redis_server: RedisServer
) -> None:
    """Exactly 40 builds and 40 address sets are ever made."""
    settings = FAKE_BACKEND + "[backends.fake.compute]\nboot_seconds = 1.0\n"
    deployment = Fakes(tmp_path, postgres_url, redis_server, settings)
    try:
        deployment.start(workers=4, concurrency=1)
        networks = [deployment.network(cidr=f"10.1.{number}.0/24") for number in range(40)]
        for number in range(1000):
            deployment.client.send(
                "create_share",
                deployment.payload(size=1, share_network_id=networks[number % 40]),
                operation_id=f"create-{number}",
            )
        wait_until(lambda: deployment.count_available() == 1000, "all are available")
        world = deployment.world
        assert len(world.calls("get_share_server", effect=True)) == 40
        assert len(world.calls("allocate_network", effect=True)) == 40
        assert len(world.servers()) == 40
        assert len(world.shares()) == 1000
        assert deployment.settle() == {"succeeded": 1040}
    finally:
        deployment.close()


def test_groups_keep_to_themselves(
    tmp_path: Path, sqlite_url: str, redis_server: RedisServer
) -> None:
    """Three workers in two groups: a backend's steps run in its own group only."""
    settings = (
        FAKE_BACKEND + FAKE_BACKEND.replace("backends.fake", "backends.bound") + 'host = "a"\n'
    )
    deployment = Fakes(tmp_path, sqlite_url, redis_server, settings)
    try:
        deployment.role("scheduler")
        deployment.worker("one", SHAREWRIGHT_HOST="b")
        deployment.worker("two", SHAREWRIGHT_HOST="b")
        deployment.worker("bound", group="host.a", SHAREWRIGHT_HOST="a")
        deployment.role("reconciler")
        deployment.wait_reported(2)
        # One share network's shares stay where its server is; those of four are spread.
        networks = [deployment.network(cidr=f"10.3.{number}.0/24") for number in range(4)]
        made = [
            deployment.client.result(deployment.create(network), timeout=limit())
            for network in networks * 5
        ]
        assert {share["backend"] for share in made} == {"fake", "bound"}
        children = {
            name: set(deployment.processes[name].children()) for name in ("one", "two", "bound")
        }
        for backend, allowed in (
            ("bound", children["bound"]),
            ("fake", children["one"] | children["two"]),
        ):
            world = World(tmp_path / "backends" / backend / "world.db")
            pids = {call.pid for call in world.calls() if call.name != "storage_pools"}
            assert pids
            assert pids <= allowed
    finally:
        deployment.close()


def test_address_pools_are_counted(
    tmp_path: Path, sqlite_url: str, redis_server: RedisServer
) -> None:
    """Held, resting and free addresses of a share network's pool and of a backend's own."""
    flat = 'network_helpers = ["flat_network"]'
    settings = FAKE_BACKEND.replace('network_helpers = ["fake"]', flat)
    own = '[backends.fake.network.flat_network]\nsubnet = "10.8.0.0/28"\n'
    deployment = Fakes(tmp_path, sqlite_url, redis_server, settings + own)
    try:
        deployment.start()
        network = deployment.network(cidr="10.7.0.0/29")
        made = deployment.client.result(deployment.create(network), timeout=limit())
        assert _addresses(deployment) == {
            (f"share_network:{network}", "held"): 1,
            (f"share_network:{network}", "resting"): 0,
            (f"share_network:{network}", "free"): 5,
            ("flat:fake", "free"): 14,
        }
        deployment.ask("delete_share", share_id=made["id"])
        deployment.settle()
        counted = _addresses(deployment)
        assert counted[f"share_network:{network}", "resting"] == 1
        assert counted[f"share_network:{network}", "free"] == 5
    finally:
        deployment.close()


def _addresses(deployment: Fakes) -> dict[tuple[str, str], int]:
    config = load(deployment.config_path)
    with reading(deployment.engine) as connection:
        families = {metric.name: metric for metric in holdings(connection, config)}
    return {
        (sample.labels["pool"], sample.labels["state"]): int(sample.value)
        for sample in families["sharewright_addresses"].samples
    }


def test_a_rule_that_is_refused_costs_no_earlier_one(fakes: Fakes) -> None:
    """What was asked for first is handed to the driver alone when the whole set is refused."""
    share = fakes.client.result(fakes.create(fakes.network()), timeout=limit())
    fakes.world.arm("extend_share", "hang", seconds=slowed(1.5))
    fakes.world.arm("update_access", "fatal", times=1)
    fakes.client.submit("extend_share", fakes.payload(share_id=share["id"], new_size=2))
    # Both are queued behind the extend, so the first one's step is handed both.
    asked = [
        fakes.client.submit(
            "allow_access", fakes.payload(share_id=share["id"], access_to=f"10.0.0.{number}")
        )
        for number in (1, 2)
    ]
    assert [fakes.client.result(one, timeout=limit())["state"] for one in asked] == ["active"] * 2
    assert sorted(rule[0] for rule in fakes.world.shares()[0]["rules"]) == ["10.0.0.1", "10.0.0.2"]
    assert [call.outcome for call in fakes.world.calls("update_access")][:2] == ["Fatal", "ok"]


def test_a_stored_result_is_noted(
    tmp_path: Path, sqlite_url: str, redis_server: RedisServer
) -> None:
    """Also by the scheduler, which runs no steps: the reconciler need not store it again."""
    # It would do so after a lease, which is longer than this waits.
    fakes = Fakes(
        tmp_path,
        sqlite_url,
        redis_server,
        engine={"lease": 10 * limit(), "address_rest": 20 * limit(), "audit_grace": 20 * limit()},
    )
    try:
        fakes.start()
        stored_results_are_noted(fakes)
    finally:
        fakes.close()


def stored_results_are_noted(fakes: Fakes) -> None:
    fakes.network()
    fakes.client.result(fakes.create(fakes.network(cidr="10.5.0.0/24")), timeout=limit())

    def noted() -> bool:
        with reading(fakes.engine) as connection:
            due = connection.execute(
                select(func.count())
                .select_from(operations)
                .where(operations.c.result_due_at.is_not(None))
            )
            return bool(due.scalar_one() == 0)

    wait_until(noted, "every stored result is noted")
    with reading(fakes.engine) as connection:
        names = {row.name for row in connection.execute(select(counters.c.name))}
    assert "requests_total:create_share:accepted" in names


@pytest.mark.parametrize("kind", ["fatal", "fatal_after_effect"])
def test_a_failed_allow_lets_nobody_in(fakes: Fakes, kind: str) -> None:
    """The driver may enforce a rule and then raise: it is taken back, and the next one counts."""
    share = fakes.client.result(fakes.create(fakes.network()), timeout=limit())
    fakes.world.arm("extend_share", "hang", seconds=slowed(1.5))
    fakes.world.arm("update_access", kind, times=2)  # the whole set, then what came first alone
    fakes.client.submit("extend_share", fakes.payload(share_id=share["id"], new_size=2))
    # Both are queued behind the extend, so the first one's step is handed both.
    first, second = (
        fakes.client.submit(
            "allow_access", fakes.payload(share_id=share["id"], access_to=f"10.0.0.{number}")
        )
        for number in (1, 2)
    )
    assert fakes.failure(first).code == "storage_failed"
    assert fakes.client.result(second, timeout=limit())["state"] == "active"
    assert fakes.world.shares()[0]["rules"] == [("10.0.0.2", "rw")]
    fakes.ask("allow_access", share_id=share["id"], access_to="10.0.0.3")
    assert [rule[0] for rule in fakes.world.shares()[0]["rules"]] == ["10.0.0.2", "10.0.0.3"]
