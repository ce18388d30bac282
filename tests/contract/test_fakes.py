"""The contracts on the fakes, and what the fakes enforce, log and let go wrong."""

from __future__ import annotations

import dataclasses
import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.pace import limit
from tests.support.services import wait_until
from worker.db.networks.addresses import DatabaseAddressStore
from worker.drivers.fake import FakeDriverOptions, FakeShareDriver
from worker.errors import ErrorCode, Fatal, LeaseLost, NotReady, Retryable, StepError
from worker.helpers.compute.fake import FakeComputeHelper, FakeComputeOptions
from worker.helpers.network.fake import FakeNetworkHelper, FakeNetworkOptions
from worker.model import (
    DriverMode,
    NetworkInfo,
    NetworkKind,
    Share,
    ShareNetwork,
    ShareServer,
    ShareServerDetails,
    Snapshot,
)
from worker.plugin import BackendContext
from worker.systems.fake_world import FaultKind, World
from worker.testing.calls import GuardThatEnds, context, interrupted_everywhere, rule
from worker.testing.compute_helper import ComputeHelperContract, NetworkFor
from worker.testing.network_helper import NetworkHelperContract, a_server
from worker.testing.share_driver import ShareDriverContract

SINGLE, FLAT, MANAGED = DriverMode
fork = multiprocessing.get_context("fork")


class ExternalSystem:
    """What the world holds, without the log."""

    holds_data = True

    def __init__(self, world: World) -> None:
        self.world = world

    def state(self) -> Any:
        world = self.world
        return (
            world.shares(),
            world.snapshots(),
            world.servers(),
            world.ports(),
            world.networks(),
        )

    def rules(self, share: Share) -> set[tuple[str, str]]:
        (found,) = [row for row in self.world.shares() if row["id"] == share.id]
        return set(found["rules"])

    def write(self, share: Share, name: str, text: str) -> None:
        self._as_root("UPDATE shares SET content = ? WHERE id = ?", f"{name}={text}", share.id)

    def read(self, share: Share, name: str) -> str:
        (found,) = [row for row in self.world.shares() if row["id"] == share.id]
        return str(found["content"]).removeprefix(f"{name}=")

    def reboot(self) -> None:
        for row in self.world.shares():
            self.world.lose_exports(row["server"])

    def _as_root(self, statement: str, *values: str) -> None:
        self.world._write(statement, values)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "world.db")


@pytest.fixture
def external(world: World) -> ExternalSystem:
    return ExternalSystem(world)


class Parts:
    """A backend's three fakes in one world."""

    def __init__(self, path: Path, mode: DriverMode = FLAT, **options: Any) -> None:
        backend = BackendContext("backend", mode, path, share_network_addresses=True)
        unused = DatabaseAddressStore("sqlite://", rest=0)
        self.driver = FakeShareDriver(
            backend, FakeDriverOptions(**options.get("driver", {})), _no_shell
        )
        self.compute = FakeComputeHelper(backend, FakeComputeOptions(**options.get("compute", {})))
        self.network = FakeNetworkHelper(
            backend, FakeNetworkOptions(**options.get("network", {})), unused
        )

    def server(self, share_network: ShareNetwork | None = None) -> ShareServer:
        share_network = share_network or a_network()
        server = a_server(share_network)
        info = self.network.allocate_network(context(), server, share_network, 1)
        details = self.compute.get_share_server(context(), server, share_network, info, ())
        return dataclasses.replace(server, network_info=info, details=details)


def _no_shell(_server: ShareServer | None) -> Any:
    raise AssertionError


def a_network(kind: NetworkKind = NetworkKind.NEUTRON, **options: Any) -> ShareNetwork:
    return ShareNetwork(str(uuid.uuid4()), "project", kind, **options)


def a_share(size: int = 1, share_proto: str = "NFS", pool: str = "pool") -> Share:
    return Share(str(uuid.uuid4()), "project", size, share_proto, "backend", pool)


class TestDriver(ShareDriverContract):
    @pytest.fixture(params=[SINGLE, FLAT, MANAGED])
    def parts(self, request: pytest.FixtureRequest, tmp_path: Path) -> Parts:
        return Parts(tmp_path, request.param)

    @pytest.fixture
    def driver(self, parts: Parts) -> FakeShareDriver:
        return parts.driver

    @pytest.fixture
    def server(self, parts: Parts) -> ShareServer | None:
        return parts.server() if parts.driver.backend.mode.has_share_servers else None


class TestCompute(ComputeHelperContract):
    @pytest.fixture(params=[0.0, 0.2])
    def helper(self, request: pytest.FixtureRequest, tmp_path: Path) -> FakeComputeHelper:
        return Parts(tmp_path, compute={"boot_seconds": request.param}).compute

    @pytest.fixture
    def network_for(self) -> NetworkFor:
        return lambda number: NetworkInfo(
            "10.7.0.0/24", "255.255.255.0", 24, 4, "10.7.0.255", None, (f"10.7.0.{number + 2}",)
        )

    @pytest.fixture
    def failing(
        self, helper: FakeComputeHelper, world: World, new_server: Callable[[int], ShareServer]
    ) -> tuple[FakeComputeHelper, ShareServer]:
        world.arm("get_share_server", FaultKind.FATAL_AFTER_EFFECT)
        return helper, new_server(0)


class TestNetwork(NetworkHelperContract):
    @pytest.fixture(params=[FLAT, MANAGED])
    def helper(self, request: pytest.FixtureRequest, tmp_path: Path) -> FakeNetworkHelper:
        return Parts(tmp_path, request.param).network

    @pytest.fixture(
        params=[
            a_network(),
            a_network(NetworkKind.FLAT_POOL, flat_network_ip_pool=("2001:db8::/120",)),
            a_network(NetworkKind.MANAGED, cidr="10.99.0.0/25"),
        ],
        ids=["neutron", "flat_pool", "managed"],
    )
    def share_network(self, request: pytest.FixtureRequest) -> ShareNetwork:
        network: ShareNetwork = request.param
        return network


class TestWhatTheNetworkSays:
    def test_share_networks_have_subnets_and_segments_of_their_own(self, tmp_path: Path) -> None:
        helper = Parts(tmp_path, MANAGED).network
        infos = []
        for _ in range(3):
            network = a_network()
            infos.append(helper.allocate_network(context(), a_server(network), network, 1))
        assert [info.cidr for info in infos] == ["10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24"]
        assert [info.addresses for info in infos] == [(f"10.0.{n}.2",) for n in range(3)]
        assert [info.gateway for info in infos] == [f"10.0.{n}.1" for n in range(3)]
        assert [info.segmentation_id for info in infos] == [100, 101, 102]
        assert {(info.segmentation_type, info.mtu) for info in infos} == {("vlan", 1500)}

    def test_flat_has_no_segment_and_named_addresses_win(self, tmp_path: Path) -> None:
        helper = Parts(tmp_path).network
        network = a_network(NetworkKind.FLAT_POOL, flat_network_ip_pool=("10.8.0.0/24",))
        info = helper.allocate_network(context(), a_server(network), network, 1)
        assert (info.cidr, info.gateway) == ("10.8.0.0/24", None)
        assert (info.segmentation_type, info.segmentation_id, info.mtu) == (None, None, None)

    def test_ports_of_a_server_that_exists_stay(self, tmp_path: Path) -> None:
        parts = Parts(tmp_path)
        server = parts.server()
        with pytest.raises(Fatal, match="in use"):
            parts.network.deallocate_network(context(), server)
        parts.compute.delete_share_server(context(), server)
        parts.network.deallocate_network(context(), server)


class TestWhatIsRefused:
    def test_an_address_given_out_twice(self, tmp_path: Path, world: World) -> None:
        parts = Parts(tmp_path)
        network = a_network()
        first = parts.server(network)
        assert first.network_info
        thief = a_server(network)
        with pytest.raises(Fatal, match="given out twice"):
            parts.compute.get_share_server(context(), thief, network, first.network_info, ())
        assert [server["id"] for server in world.servers()] == [first.id]
        assert world.calls("get_share_server")[-1].outcome == "Fatal"
        assert "given out twice" in world.calls("get_share_server")[-1].message
        elsewhere = a_network()
        parts.compute.get_share_server(
            context(),
            a_server(elsewhere),
            elsewhere,
            dataclasses.replace(first.network_info, attributes={}),
            (),
        )

    def test_a_server_with_shares_is_not_deleted(self, tmp_path: Path) -> None:
        parts = Parts(tmp_path)
        server, share = parts.server(), a_share()
        parts.driver.create_share(context(), share, server)
        with pytest.raises(Fatal, match=share.id) as refused:
            parts.compute.delete_share_server(context(), server)
        assert refused.value.code is ErrorCode.COMPUTE_FAILED
        assert refused.value.share_server_id == f"fake-{server.id}"
        parts.driver.delete_share(context(), share, server)
        parts.compute.delete_share_server(context(), server)

    def test_a_share_on_a_server_that_does_not_serve(self, tmp_path: Path) -> None:
        parts = Parts(tmp_path)
        gone = parts.server()
        parts.compute.delete_share_server(context(), gone)
        for server in (None, gone, dataclasses.replace(gone, details=None)):
            with pytest.raises(Fatal):
                parts.driver.create_share(context(), a_share(), server)
        unchecked = Parts(tmp_path, driver={"check_servers": False}).driver
        assert unchecked.create_share(context(), a_share(), gone)

    @pytest.mark.parametrize(
        "change",
        [{"size": 2}, {"share_proto": "CIFS"}, {"project_id": "another"}, {"pool": "other"}],
    )
    def test_another_share_of_the_same_id(self, tmp_path: Path, change: dict[str, Any]) -> None:
        driver = Parts(tmp_path, SINGLE, driver={"pools": {"pool": 9, "other": 9}}).driver
        share = a_share()
        driver.create_share(context(), share, None)
        with pytest.raises(Fatal, match="exists already"):
            driver.create_share(context(), dataclasses.replace(share, **change), None)

    def test_capacity_is_enforced_and_given_back(self, tmp_path: Path) -> None:
        driver = Parts(tmp_path, SINGLE, driver={"pools": {"pool": 10, "small": 1}}).driver
        first = a_share(6)
        driver.create_share(context(), first, None)
        with pytest.raises(Fatal, match="no room"):
            driver.create_share(context(), a_share(5), None)
        with pytest.raises(Fatal, match="no room"):
            driver.extend_share(context(), first, 11, None)
        driver.extend_share(context(), first, 9, None)
        assert {pool.name: pool.free_gib for pool in driver.storage_pools(context())} == {
            "pool": 1,
            "small": 1,
        }
        driver.delete_share(context(), dataclasses.replace(first, size=9), None)
        driver.create_share(context(), a_share(10), None)
        with pytest.raises(Fatal, match="does not exist"):
            driver.create_share(context(), a_share(pool="none"), None)

    def test_a_snapshot_of_a_missing_share(self, tmp_path: Path, world: World) -> None:
        driver = Parts(tmp_path, SINGLE).driver
        share = a_share()
        snapshot = Snapshot(str(uuid.uuid4()), share.id, "project", 1)
        with pytest.raises(Fatal, match="does not exist"):
            driver.create_snapshot(context(), snapshot, share, None)
        with pytest.raises(Fatal, match="does not exist"):
            driver.create_share_from_snapshot(context(), a_share(), snapshot, None)
        assert (world.snapshots(), world.shares()) == ([], [])

    def test_protocols_and_where_clients_find_them(self, tmp_path: Path) -> None:
        parts = Parts(tmp_path)
        server = parts.server()
        nfs, cifs = a_share(), a_share(share_proto="CIFS")
        paths = [
            parts.driver.create_share(context(), share, server)[0].path for share in (nfs, cifs)
        ]
        assert paths == [f"10.0.0.2:/shares/{nfs.id}", rf"\\10.0.0.2\{cifs.id}"]
        with pytest.raises(Fatal, match="HDFS"):
            parts.driver.create_share(context(), a_share(share_proto="HDFS"), server)


class TestClients:
    def test_rules_and_quota_hold_for_clients(self, tmp_path: Path, world: World) -> None:
        driver = Parts(tmp_path, SINGLE).driver
        share = a_share(2)
        driver.create_share(context(), share, None)
        with pytest.raises(PermissionError):
            world.read(share.id, "10.1.0.9")
        rules = [rule("10.1.0.0/24"), rule("10.1.0.7", "ro")]
        driver.update_access(context(), share, None, rules, 1)
        world.write(share.id, "10.1.0.9", "hello", used_gib=2)
        assert world.read(share.id, "10.1.0.7") == "hello"
        for client, used, expected in (
            ("10.1.0.7", 0, errno.EROFS),
            ("10.1.0.9", 3, errno.EDQUOT),
            ("10.2.0.9", 0, errno.EACCES),
            ("2001:db8::1", 0, errno.EACCES),
        ):
            with pytest.raises(OSError, match=share.id) as refused:
                world.write(share.id, client, "no", used_gib=used)
            assert refused.value.errno == expected
        assert world.read(share.id, "10.1.0.9") == "hello"
        with pytest.raises(FileNotFoundError):
            world.read("none", "10.1.0.9")


class TestFaults:
    @pytest.mark.parametrize(
        ("kind", "error", "made"),
        [
            (FaultKind.FATAL, Fatal, 0),
            (FaultKind.RETRYABLE, Retryable, 0),
            (FaultKind.NOT_READY, NotReady, 0),
            (FaultKind.FATAL_AFTER_EFFECT, Fatal, 1),
            (FaultKind.RETRYABLE_AFTER_EFFECT, Retryable, 1),
        ],
    )
    def test_each_kind_once(
        self, tmp_path: Path, world: World, kind: FaultKind, error: type[Exception], made: int
    ) -> None:
        parts = Parts(tmp_path)
        network = a_network()
        server = a_server(network)
        info = parts.network.allocate_network(context(), server, network, 1)
        world.arm("get_share_server", kind)
        with pytest.raises(error) as failure:
            parts.compute.get_share_server(context(), server, network, info, ())
        assert isinstance(failure.value, StepError | NotReady)
        assert failure.value.share_server_id == (f"fake-{server.id}" if made else None)
        assert len(world.servers()) == made
        assert len(world.calls("get_share_server", effect=True)) == made
        parts.compute.get_share_server(context(), server, network, info, ())
        outcomes = [call.outcome for call in world.calls("get_share_server")]
        assert outcomes == [error.__name__, "ok"]
        assert len(world.calls("get_share_server", effect=True)) == 1

    def test_matching_times_and_disarming(self, tmp_path: Path, world: World) -> None:
        parts = Parts(tmp_path)
        network, other = a_network(), a_network()
        world.arm("allocate_network", "fatal", times=2, match=network.id)
        parts.network.allocate_network(context(), a_server(other), other, 1)
        for _ in range(2):
            with pytest.raises(Fatal) as failure:
                parts.network.allocate_network(context(), a_server(network), network, 1)
        assert failure.value.code is ErrorCode.NETWORK_FAILED
        parts.network.allocate_network(context(), a_server(network), network, 1)
        world.arm("allocate_network", "fatal", times=9)
        world.disarm()
        parts.network.allocate_network(context(), a_server(network), network, 1)

    def test_who_hangs_asks_the_guard_again(self, tmp_path: Path, world: World) -> None:
        driver = Parts(tmp_path, SINGLE).driver
        world.arm("create_share", "hang", seconds=0.2)
        with pytest.raises(LeaseLost):
            driver.create_share(context(GuardThatEnds(1)), a_share(), None)
        assert world.shares() == []
        (call,) = world.calls("create_share")
        assert (call.outcome, call.effect) == ("LeaseLost", False)
        assert call.finished is not None
        assert call.finished - call.started >= 0.2

    def test_a_worker_killed_in_a_call_leaves_its_line(self, tmp_path: Path, world: World) -> None:
        driver = Parts(tmp_path, SINGLE, driver={"delay": {"create_share": 60}}).driver
        share = a_share()
        child = fork.Process(target=driver.create_share, args=(context(), share, None))
        child.start()
        wait_until(lambda: bool(world.calls()), "the child is in the call")
        assert child.pid
        os.kill(child.pid, signal.SIGKILL)
        child.join(limit())
        (call,) = world.calls("create_share")
        assert (call.outcome, call.finished, call.pid) == ("", None, child.pid)
        assert (call.object_id, call.operation_id) == (share.id, "operation")
        assert world.shares() == []

    def test_faults_are_used_up_once_whoever_meets_them(self, tmp_path: Path, world: World) -> None:
        driver = Parts(tmp_path, SINGLE).driver
        world.arm("create_share", "fatal", times=10)
        children = [fork.Process(target=_create_many, args=(driver, 25)) for _ in range(4)]
        for child in children:
            child.start()
        for child in children:
            child.join(limit())
        assert [child.exitcode for child in children] == [0] * 4
        outcomes = [call.outcome for call in world.calls("create_share")]
        assert (outcomes.count("Fatal"), outcomes.count("ok")) == (10, 90)
        assert len(world.shares()) == len(world.calls("create_share", effect=True)) == 90


def _create_many(driver: FakeShareDriver, count: int) -> None:
    for _ in range(count):
        try:
            driver.create_share(context(), a_share(), None)
        except Fatal:
            continue


def test_booting_is_waited_for(tmp_path: Path, world: World) -> None:
    parts = Parts(tmp_path, compute={"boot_seconds": 0.3})
    network = a_network()
    server = a_server(network)
    info = parts.network.allocate_network(context(), server, network, 1)
    with pytest.raises(NotReady) as waiting:
        parts.compute.get_share_server(context(), server, network, info, ())
    assert waiting.value.share_server_id == f"fake-{server.id}"
    assert 0 < waiting.value.retry_after <= 0.3
    booting = dataclasses.replace(
        server, details=ShareServerDetails(f"fake-{server.id}", info.addresses)
    )
    with pytest.raises(Fatal, match="does not serve"):
        parts.driver.create_share(context(), a_share(), booting)
    time.sleep(waiting.value.retry_after + 0.01)
    parts.compute.get_share_server(context(), server, network, info, ())
    assert len(world.calls("get_share_server", effect=True)) == 1
    assert [call.outcome for call in world.calls("get_share_server")] == ["NotReady", "ok"]


def test_what_changes_nothing_is_no_effect(tmp_path: Path, world: World) -> None:
    driver = Parts(tmp_path, SINGLE).driver
    share = a_share()
    steps: list[Callable[[], object]] = [
        lambda: driver.create_share(context(), share, None),
        lambda: driver.update_access(context(), share, None, [], 3),
        lambda: driver.extend_share(context(), share, 3, None),
        lambda: driver.delete_share(context(), share, None),
    ]
    for step in steps[:2]:
        step()
        step()
    interrupted_everywhere(lambda c: driver.extend_share(c, share, 3, None))
    steps[2]()
    steps[3]()
    steps[3]()
    effects = [call.name for call in world.calls(effect=True)]
    assert effects == ["create_share", "update_access", "extend_share", "delete_share"]


def test_the_log_can_be_left_out(tmp_path: Path, world: World) -> None:
    driver = Parts(tmp_path, SINGLE, driver={"log_calls": False, "delay": 0.01}).driver
    driver.create_share(context(), a_share(), None)
    assert len(world.shares()) == 1
    assert world.calls() == []


def test_importing_the_fakes_is_light() -> None:
    listed = subprocess.run(
        [sys.executable, "-c", "import sys, worker.drivers.fake; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert "worker.drivers.fake" in listed
    assert not {"celery", "sqlalchemy", "openstack", "hypothesis"} & set(listed)


def _open_new_worlds(directory: Path, both: Any, failures: Any) -> None:
    for number in range(400):
        world = World(directory / str(number) / "world.db")
        both.wait(limit())
        try:
            world.servers()
        except Exception as error:  # noqa: BLE001 - the parent shows it
            failures.put(repr(error))


def test_two_processes_may_open_a_new_world_at_once(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    both, failures = fork.Barrier(2), fork.Queue()
    pair = [
        fork.Process(target=_open_new_worlds, args=(tmp_path, both, failures)) for _ in range(2)
    ]
    for process in pair:
        process.start()
    for process in pair:
        process.join(limit())
    assert [process.exitcode for process in pair] == [0, 0]
    assert failures.empty(), failures.get()
