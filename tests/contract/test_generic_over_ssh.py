"""The generic driver on servers behind SSH: the contract, clients, and what a network can do."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from netaddr import IPNetwork

from tests.contract.generic_driver_suite import ExternalSystem, GenericDriverContract
from tests.support.machines import Lan, Machine
from tests.support.services import require_root_datapath, wait_until
from tests.support.tenants import Machine as Host
from tests.support.tenants import Tenant
from worker.drivers.base import ShareDriver
from worker.drivers.generic import GenericOptions, GenericShareDriver
from worker.errors import ConfigurationError, ErrorCode, Fatal, Retryable
from worker.helpers.compute.machines import ssh_shell
from worker.model import DriverMode, Share, ShareServer, Snapshot
from worker.plugin import BackendContext
from worker.systems.openstack.cloud_init import host_key_pair
from worker.systems.shell.base import Shell
from worker.systems.shell.local import LocalShell
from worker.systems.shell.ssh import SshShell
from worker.testing.calls import context, rule

MODE = DriverMode.FLAT_MULTI_SVM


@pytest.fixture(scope="module")
def lan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lan]:
    require_root_datapath()
    with Lan.made(tmp_path_factory.mktemp("lan")) as lan:
        yield lan


@pytest.fixture(scope="module")
def client(lan: Lan) -> Tenant:
    return lan.client()


@pytest.fixture(scope="module")
def machine(lan: Lan) -> Machine:
    return lan.machine("server-1")


@pytest.fixture(scope="module")
def other(lan: Lan) -> Machine:
    return lan.machine("server-2")


def driver_on(machine: Machine, **given: Any) -> GenericShareDriver:
    """A driver, as a worker on any host would have it: it has no directory on this one."""

    def shell_for(server: ShareServer | None) -> Shell:
        assert server is not None, "nothing of such a backend is on this host"
        return ssh_shell(machine.options, server)

    backend = BackendContext("backend", MODE, Path("/nonexistent"), servers_elsewhere=True)
    options = GenericOptions.model_validate({"capacity": 100, "pool_size": 5} | given)
    return GenericShareDriver(backend, options, shell_for)


def clear(driver: GenericShareDriver, machine: Machine) -> None:
    """Make the machine as new, and look whether it is."""
    base = Path(machine.options.server_directory)
    if (base / "storage.kind").exists():
        storage = driver._storage(context(), machine.server())
        for left in storage.contents():
            share = Share(left, "project", 1, "NFS", "backend", "servers")
            driver.delete_share(context(), share, machine.server())
            storage.delete_snapshot(left)
        storage.close()
    if (base / "ganesha").exists():
        driver._ganesha(context(), machine.server()).stop()
    left_behind = Host.look([str(base)])
    assert not left_behind.mounts
    assert not left_behind.loops
    assert not left_behind.processes
    shutil.rmtree(base, ignore_errors=True)


def a_share(server: ShareServer) -> Share:
    return Share(
        str(uuid.uuid4()), "project", 1, "NFS", "backend", "servers", share_server_id=server.id
    )


class TestGenericOverSsh(GenericDriverContract):
    @pytest.fixture
    def server(self, machine: Machine) -> ShareServer:
        return machine.server()

    @pytest.fixture
    def external(self, machine: Machine) -> ExternalSystem:
        return ExternalSystem(Path(machine.options.server_directory), "ganesha")

    @pytest.fixture
    def driver(self, machine: Machine, server: ShareServer) -> Iterator[GenericShareDriver]:
        driver = driver_on(machine)
        driver._storage(context(), server)
        yield driver
        clear(driver, machine)

    def test_decommission_is_refused_while_shares_exist(
        self, driver: ShareDriver, server: ShareServer | None, share: Share
    ) -> None:
        """Otherwise here: this host has nothing of them, and the servers stay as they are."""
        assert isinstance(driver, GenericShareDriver)
        locations = driver.create_share(context(), share, server)
        driver.decommission(context())
        assert driver.create_share(context(), share, server) == locations


@pytest.fixture
def driver(machine: Machine, request: pytest.FixtureRequest) -> Iterator[GenericShareDriver]:
    driver = driver_on(machine, storage=getattr(request, "param", "auto"))
    yield driver
    if not machine.sshd.running:
        machine.start()
    clear(driver, machine)


@pytest.mark.parametrize("driver", ["btrfs", "images"], indirect=True)
def test_a_client_reads_and_writes_and_only_by_the_rules(
    driver: GenericShareDriver, machine: Machine, client: Tenant
) -> None:
    server = machine.server()
    share = a_share(server)
    (location,) = driver.create_share(context(), share, server)
    assert location.path == f"{machine.address}:/shares/{share.id}"
    assert client.nfs(location.path, "mount")["error"] == "NOENT"
    everybody = str(IPNetwork(f"{machine.address}/28").cidr)
    driver.update_access(context(), share, server, [rule(everybody)], 1)
    assert client.nfs(location.path, "write", "file", data=b"hello" * 2000)["ok"]
    driver.update_access(context(), share, server, [rule(everybody, "ro")], 2)
    assert client.nfs(location.path, "read", "file")["text"] == "hello" * 2000
    assert client.nfs(location.path, "write", "other", data=b"x")["error"] == "ROFS"
    snapshot, copy = Snapshot(str(uuid.uuid4()), share.id, "project", 1), a_share(server)
    driver.create_snapshot(context(), snapshot, share, server)
    (its,) = driver.create_share_from_snapshot(context(), copy, snapshot, server)
    driver.update_access(context(), copy, server, [rule(everybody)], 1)
    assert client.nfs(its.path, "read", "file")["text"] == "hello" * 2000
    driver.delete_share(context(), share, server)
    assert client.nfs(location.path, "mount")["error"] == "NOENT"
    assert client.nfs(its.path, "write", "other", data=b"x")["ok"]


def test_clients_do_not_notice_that_sshd_and_its_connections_are_gone(
    driver: GenericShareDriver, machine: Machine, client: Tenant
) -> None:
    server = machine.server()
    share = a_share(server)
    (location,) = driver.create_share(context(), share, server)
    driver.update_access(
        context(), share, server, [rule(str(IPNetwork(f"{machine.address}/28").cidr))], 1
    )
    external = ExternalSystem(Path(machine.options.server_directory), "ganesha")
    command = client.nfs_command(location.path, "loop", "file", "60")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as loop:
        try:
            wait_until((external.data(share) / "file").exists, "the client writes")
            machine.kill()
            with pytest.raises(Retryable, match="share server server-1"):
                driver.update_access(context(), share, server, [], 2)
            machine.start()
            driver.extend_share(context(), share, 2, server)
        finally:
            loop.terminate()
        assert loop.stdout is not None
        seen = json.loads(loop.stdout.read())
    assert seen["operations"] > 0
    assert seen["failures"] == []
    assert driver.share_size(context(), share, server) == 2


DROP = "read -r _ _ _ sshd _ </proc/$PPID/stat; kill -KILL $sshd"
"""What a command does that ends its own connection: its parent is ``timeout``."""
DROPPING = (f'{DROP}; exec "$@"', f'"$@"; {DROP}; exit 0', f"{DROP}; exit 0")
"""Before the command, after it, and instead of it; what became of it is lost each time."""


class Steadiness:
    """How many commands go well before one has its connection dropped; None is all."""

    left: int | None = None

    def spoiled(self, argv: Sequence[str]) -> Sequence[str]:
        if self.left is None:
            return argv
        self.left -= 1
        return argv if self.left != -1 else ["sh", "-c", DROPPING[len(argv) % 3], "sh", *argv]

    def dropped_everywhere(self, call: Callable[[], object]) -> int:
        """Call again and again, with a drop two commands later each time; how many broke."""
        for broken, steady in enumerate(range(0, 200, 2)):
            self.left = steady
            try:
                call()
            except Retryable:
                assert self.left < 0
                continue
            assert self.left >= 0
            self.left = None
            return broken
        pytest.fail("it never gets through")


@dataclasses.dataclass(frozen=True)
class Unsteady(SshShell):
    """A shell over SSH, with drops."""

    steadiness: Steadiness = dataclasses.field(default_factory=Steadiness)

    def _line(self, argv: Sequence[str], timeout: float) -> str:
        return super()._line(self.steadiness.spoiled(argv), timeout)


def test_connections_that_drop_anywhere_are_repaired_by_the_next_call(
    driver: GenericShareDriver, machine: Machine
) -> None:
    server = machine.server()
    external = ExternalSystem(Path(machine.options.server_directory), "ganesha")
    driver._storage(context(), server)
    empty = external.state()
    shell = Unsteady(**dataclasses.asdict(machine.shell()))
    driver.shell_for = lambda _: shell
    share, clone = a_share(server), a_share(server)
    snapshot = Snapshot(str(uuid.uuid4()), share.id, "project", 1)
    rules = [rule("10.1.0.7")]
    broken = [
        shell.steadiness.dropped_everywhere(call)
        for call in (
            lambda: driver.create_share(context(), share, server),
            lambda: driver.update_access(context(), share, server, rules, 1),
            lambda: driver.create_snapshot(context(), snapshot, share, server),
            lambda: driver.create_share_from_snapshot(context(), clone, snapshot, server),
            lambda: driver.extend_share(context(), clone, 2, server),
        )
    ]
    assert external.rules(share) == {("10.1.0.7", "rw")}
    assert external.rules(clone) == set()
    assert driver.share_size(context(), clone, server) == 2
    broken += [
        shell.steadiness.dropped_everywhere(call)
        for call in (
            lambda: driver.delete_share(context(), clone, server),
            lambda: driver.delete_snapshot(context(), snapshot, share, server),
            lambda: driver.delete_share(context(), share, server),
        )
    ]
    assert all(broken)
    assert external.state() == empty


def test_a_server_whose_host_key_changed_is_refused_with_a_sentence(
    driver: GenericShareDriver, machine: Machine
) -> None:
    server = machine.server()
    share = a_share(server)
    driver.create_share(context(), share, server)
    kept = (machine.directory / "host_key").read_text()
    machine.kill()
    machine.install(host_key_pair(machine.options.ssh_private_key_file, "another")[0])
    machine.start()
    try:
        calls: tuple[Callable[[], object], ...] = (
            lambda: driver.update_access(context(), share, server, [rule("10.1.0.7")], 1),
            lambda: driver.delete_share(context(), share, server),
        )
        for call in calls:
            with pytest.raises(Fatal, match=r"share server server-1 at .* does not have the SSH"):
                call()
    finally:
        machine.kill()
        machine.install(kept)
        machine.start()
    driver.delete_share(context(), share, server)


def test_a_snapshot_stays_on_its_server(
    driver: GenericShareDriver, machine: Machine, other: Machine
) -> None:
    here, there = machine.server(), other.server()
    share, clone = a_share(here), a_share(there)
    snapshot = Snapshot(str(uuid.uuid4()), share.id, "project", 1)
    driver.create_share(context(), share, here)
    driver.create_snapshot(context(), snapshot, share, here)
    try:
        with pytest.raises(Fatal, match="is not on share server server-2") as caught:
            driver.create_share_from_snapshot(context(), clone, snapshot, there)
        assert caught.value.code is ErrorCode.NOT_SUPPORTED
        driver.delete_share(context(), clone, there)
        assert driver._storage(context(), there).contents() == ()
        near = a_share(here)
        assert driver.create_share_from_snapshot(context(), near, snapshot, here)
    finally:
        clear(driver, other)


def test_a_server_that_was_never_built_has_nothing_to_delete(
    driver: GenericShareDriver, machine: Machine
) -> None:
    server = dataclasses.replace(machine.server(), details=None)
    driver.delete_share(context(), a_share(server), server)
    with pytest.raises(Fatal, match="is not built"):
        driver.create_share(context(), a_share(server), server)


def test_the_pool_is_what_was_configured_and_asks_no_server(machine: Machine) -> None:
    (pool,) = driver_on(machine, capacity=700).storage_pools(context())
    assert (pool.name, pool.total_gib, pool.free_gib) == ("servers", 700, 700)


@pytest.mark.parametrize(("elsewhere", "capacity"), [(True, None), (False, 10)])
def test_a_capacity_is_for_servers_that_are_machines_of_their_own(
    elsewhere: bool, capacity: int | None
) -> None:
    backend = BackendContext("backend", MODE, Path("/nonexistent"), servers_elsewhere=elsewhere)
    with pytest.raises(ConfigurationError, match=r"driver\.capacity"):
        GenericShareDriver(backend, GenericOptions(capacity=capacity), lambda _: LocalShell())
