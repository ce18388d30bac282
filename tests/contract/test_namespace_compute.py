"""The contract on real namespaces, and what is particular to them."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.pace import limit
from tests.support.services import alive, require_root_datapath, wait_until
from tests.support.tenants import Machine, Tenant, run
from worker.errors import ConfigurationError, ErrorCode, Fatal, NotReady
from worker.helpers.compute.namespace import NamespaceComputeHelper, NamespaceOptions, bridge_name
from worker.model import DriverMode, NetworkInfo, NetworkKind, Outage, ShareNetwork, ShareServer
from worker.plugin import BackendContext
from worker.systems.network.bridges import short
from worker.testing.calls import context
from worker.testing.compute_helper import ComputeHelperContract, NetworkFor, a_server


def network(number: int) -> NetworkInfo:
    return NetworkInfo(
        cidr="10.71.0.0/24",
        netmask="255.255.255.0",
        prefix_length=24,
        ip_version=4,
        broadcast="10.71.0.255",
        gateway="10.71.0.1",
        addresses=(f"10.71.0.{10 + number}",),
    )


class ExternalSystem:
    """Namespaces, ports, bridges, processes and files of this test's servers only."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.marks: list[str] = [str(state_dir)]

    def state(self) -> Any:
        ours = [path.name for path in self.state_dir.glob("servers/*")]
        return Machine.look(self.marks), sorted(ours)


class TestNamespaceComputeHelper(ComputeHelperContract):
    @pytest.fixture
    def network_for(self) -> NetworkFor:
        return network

    @pytest.fixture
    def helper(self, tmp_path: Path) -> NamespaceComputeHelper:
        require_root_datapath()
        backend = BackendContext("backend", DriverMode.FLAT_MULTI_SVM, tmp_path)
        return NamespaceComputeHelper(backend, NamespaceOptions())

    @pytest.fixture
    def external(self, tmp_path: Path, share_network: ShareNetwork) -> ExternalSystem:
        external = ExternalSystem(tmp_path)
        external.marks.append(bridge_name(share_network.id))
        return external

    @pytest.fixture
    def new_server(
        self,
        network_for: NetworkFor,
        share_network: ShareNetwork,
        external: ExternalSystem,
        helper: NamespaceComputeHelper,
    ) -> Iterator[Callable[[int], ShareServer]]:
        made: list[ShareServer] = []

        def new(number: int) -> ShareServer:
            server = a_server(network_for(number), share_network)
            made.append(server)
            external.marks += [server.id, short(server.id)]
            return server

        yield new
        for server in made:
            helper.delete_share_server(context(), server)

    @pytest.fixture
    def failing(
        self, helper: NamespaceComputeHelper, new_server: Callable[[int], ShareServer]
    ) -> tuple[NamespaceComputeHelper, ShareServer]:
        """Nothing on its network leads to its gateway."""
        server = new_server(0)
        lost = dataclasses.replace(network(0), gateway="192.0.2.1")
        return helper, dataclasses.replace(server, network_info=lost)

    def test_the_daemon_is_nobodys_child_and_outlives_its_starter(
        self, helper: Any, new_server: Any, share_network: ShareNetwork, tmp_path: Path
    ) -> None:
        server = new_server(0)
        script = f"""
import ctypes, os, signal, pathlib
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
from tests.contract.test_namespace_compute import network
from worker.helpers.compute.namespace import *
from worker.model import *
from worker.plugin import BackendContext
from worker.systems.network.bridges import short
backend = BackendContext("backend", DriverMode.FLAT_MULTI_SVM, pathlib.Path({str(tmp_path)!r}))
helper = NamespaceComputeHelper(backend, NamespaceOptions())
server = ShareServer({server.id!r}, "project", "backend", {share_network.id!r}, "building")
net = ShareNetwork({share_network.id!r}, "project", NetworkKind.FLAT_POOL)
helper.get_share_server(RequestContext("project"), server, net, network(0), ())
os.killpg(0, signal.SIGKILL)
"""
        done = subprocess.run(
            [sys.executable, "-c", script], start_new_session=True, timeout=limit(), check=False
        )
        assert done.returncode == -signal.SIGKILL
        (pid,) = run("ip", "netns", "pids", f"sw-{server.id}").split()
        assert os.getsid(int(pid)) == int(pid)
        descriptors = {str(one.readlink()) for one in Path(f"/proc/{pid}/fd").iterdir()}
        assert not {
            one for one in descriptors if one.startswith("/") and "/dev/null" not in one
        } - {f"{tmp_path}/servers/{server.id}/ganesha.pid"}
        self.get(helper, server, share_network)
        assert run("ip", "netns", "pids", f"sw-{server.id}").split() == [pid]

    def test_what_hangs_is_missed_and_is_replaced(
        self,
        helper: Any,
        new_server: Any,
        share_network: ShareNetwork,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("worker.systems.exports.probe.PROBE_SECONDS", (1.0, 1.0))
        well, server = new_server(0), new_server(1)
        self.get(helper, well, share_network)
        details = self.get(helper, server, share_network)
        assert helper.outages([well, server]) == {}
        (pid,) = run("ip", "netns", "pids", f"sw-{server.id}").split()
        os.kill(int(pid), signal.SIGSTOP)
        assert helper.outages([well, server]) == {}, "each is asked once a minute"
        helper._next_probe.clear()
        assert helper.outages([well, server]) == {server.id: Outage.FILE_SERVER}
        active = dataclasses.replace(server, details=details)
        assert self.get(helper, active, share_network) == details
        assert not alive(int(pid))
        helper._next_probe.clear()
        assert helper.outages([well, server]) == {}
        (now,) = run("ip", "netns", "pids", f"sw-{server.id}").split()
        self.get(helper, active, share_network)
        assert run("ip", "netns", "pids", f"sw-{server.id}").split() == [now], (
            "it answers: it stays"
        )

    def test_what_died_is_missed_and_is_there_again(
        self, helper: Any, new_server: Any, share_network: ShareNetwork
    ) -> None:
        server = new_server(0)
        self.get(helper, server, share_network)
        namespace = f"sw-{server.id}"
        (pid,) = run("ip", "netns", "pids", namespace).split()
        os.kill(int(pid), signal.SIGKILL)
        wait_until(lambda: helper.outages([server]) != {}, "its end is noticed")
        assert helper.outages([server]) == {server.id: Outage.FILE_SERVER}
        self.get(helper, server, share_network)
        assert helper.outages([server]) == {}
        # The namespace loses its name, and the daemon in it lives on where nobody can enter.
        (stray,) = run("ip", "netns", "pids", namespace).split()
        run("ip", "netns", "del", namespace)
        assert helper.outages([server]) == {server.id: Outage.SERVER}
        self.get(helper, server, share_network)
        assert helper.outages([server]) == {}
        assert not alive(int(stray))
        assert len(run("ip", "netns", "pids", namespace).split()) == 1

    def test_a_hash_that_is_taken_is_refused(
        self, helper: Any, new_server: Any, share_network: ShareNetwork
    ) -> None:
        bridge = bridge_name(share_network.id)
        run("ip", "link", "add", "name", bridge, "type", "bridge")
        run("ip", "link", "set", "dev", bridge, "alias", "somebody else")
        server = new_server(0)
        try:
            with pytest.raises(Fatal, match="used by something else") as caught:
                self.get(helper, server, share_network)
            assert caught.value.share_server_id == f"sw-{server.id}"
        finally:
            run("ip", "link", "del", "dev", bridge)

    def test_the_operators_bridge_is_joined_and_left_alone(
        self, tmp_path: Path, new_server: Any, share_network: ShareNetwork
    ) -> None:
        bridge = f"swx{uuid.uuid4().hex[:8]}"
        backend = BackendContext("backend", DriverMode.FLAT_MULTI_SVM, tmp_path)
        flat = NamespaceComputeHelper(backend, NamespaceOptions(bridge=bridge))
        server = new_server(0)
        with pytest.raises(Fatal, match="does not exist"):
            self.get(flat, server, share_network)
        run("ip", "link", "add", "name", bridge, "type", "bridge")
        run("ip", "link", "set", "dev", bridge, "up")
        try:
            assert self.get(flat, server, share_network).attributes["bridge"] == bridge
            flat.delete_share_server(context(), server)
            run("ip", "link", "show", "dev", bridge)
        finally:
            run("ip", "link", "del", "dev", bridge)

    def test_a_tenant_reaches_its_server_but_not_the_host(
        self, helper: Any, new_server: Any, share_network: ShareNetwork
    ) -> None:
        server = new_server(0)
        details = self.get(helper, server, share_network)
        tenant = Tenant.make(details.attributes["bridge"], "10.71.0.200/24")
        hosts_own = f"198.51.100.{os.getpid() % 250 + 1}"
        run("ip", "address", "add", f"{hosts_own}/32", "dev", "lo")
        try:
            assert tenant.reaches("10.71.0.10", 2049)
            mac = Path(f"/sys/class/net/{details.attributes['bridge']}/address").read_text()
            batch = (
                f"route add {hosts_own}/32 dev eth0\n"
                f"neighbour replace {hosts_own} lladdr {mac.strip()} dev eth0\n"
            )
            run("ip", "-n", tenant.namespace, "-batch", "-", data=batch)
            # One datagram is enough to be reached; a connection would need a way back as well.
            send = "import socket, sys; socket.socket(type=2).sendto(b'x', (sys.argv[1], 7))"
            with socket.socket(type=socket.SOCK_DGRAM) as listening:
                listening.bind((hosts_own, 7))
                listening.settimeout(1)
                run(*tenant.command(sys.executable, "-c", send, hosts_own))
                with pytest.raises(TimeoutError):
                    listening.recv(1)
        finally:
            run("ip", "address", "del", f"{hosts_own}/32", "dev", "lo")
            tenant.close()

    def test_an_address_that_is_none_becomes_no_command(
        self, helper: Any, new_server: Any, share_network: ShareNetwork
    ) -> None:
        server = new_server(0)
        evil = network(0)
        object.__setattr__(evil, "gateway", "10.71.0.1\nlink del eth0")
        with pytest.raises((Fatal, NotReady), match="neither an address"):
            helper.get_share_server(context(), server, share_network, evil, ())


VNI = uuid.uuid4().int % 10_000_000 + 1_000_000
UDP_PORT = 20_000 + os.getpid() % 20_000


def managed(tmp_path: Path, **options: Any) -> NamespaceComputeHelper:
    backend = BackendContext("backend", DriverMode.MANAGED_MULTI_SVM, tmp_path)
    return NamespaceComputeHelper(backend, NamespaceOptions.model_validate(options))


def segmented(number: int, kind: str = "vxlan", segment: int = VNI) -> NetworkInfo:
    return dataclasses.replace(
        network(number), segmentation_type=kind, segmentation_id=segment, mtu=1450
    )


class TestNamespacesOnVxlan(TestNamespaceComputeHelper):
    """The same with a tunnel, which comes with the first server and goes with the last."""

    @pytest.fixture
    def network_for(self) -> NetworkFor:
        return segmented

    @pytest.fixture
    def helper(self, tmp_path: Path) -> NamespaceComputeHelper:
        require_root_datapath()
        return managed(tmp_path, underlay_address="127.0.0.1", vxlan_port=UDP_PORT)

    @pytest.fixture
    def external(self, tmp_path: Path, share_network: ShareNetwork) -> ExternalSystem:
        external = ExternalSystem(tmp_path)
        external.marks += [bridge_name(share_network.id), f"swx{VNI}"]
        return external

    def test_a_segment_that_is_taken_on_the_host_is_refused(
        self, helper: Any, new_server: Any, share_network: ShareNetwork
    ) -> None:
        self.get(helper, new_server(0), share_network)
        other = ShareNetwork(str(uuid.uuid4()), "project", NetworkKind.MANAGED)
        server = a_server(segmented(0), other)
        try:
            with pytest.raises(Fatal, match=f"swx{VNI}.* used by something else"):
                self.get(helper, server, other)
        finally:
            helper.delete_share_server(context(), server)

    def test_one_bridge_never_joins_two_segments(
        self, helper: Any, new_server: Any, share_network: ShareNetwork
    ) -> None:
        self.get(helper, new_server(0), share_network)
        server = new_server(1)
        moved = dataclasses.replace(server, network_info=segmented(1, segment=VNI + 1))
        with pytest.raises(Fatal, match="has another segment on this host already"):
            self.get(helper, moved, share_network)


class TestSegmentsThatCannotBeBuilt:
    @pytest.fixture(autouse=True)
    def _needs_root(self) -> None:
        require_root_datapath()

    def refused(self, helper: NamespaceComputeHelper, info: NetworkInfo) -> Fatal:
        share_network = ShareNetwork(str(uuid.uuid4()), "project", NetworkKind.MANAGED)
        server = a_server(info, share_network)
        try:
            with pytest.raises(Fatal) as caught:
                helper.get_share_server(context(), server, share_network, info, ())
        finally:
            helper.delete_share_server(context(), server)
        assert Machine.look([server.id, bridge_name(share_network.id)]) == Machine(
            *[frozenset()] * 5
        )
        assert caught.value.code is ErrorCode.CONFIGURATION
        return caught.value

    @pytest.mark.parametrize(
        ("options", "info", "words"),
        [
            ({}, segmented(0), "set compute.underlay_address"),
            ({}, segmented(0, "vlan", 5), "set compute.vlan_parent"),
            ({}, segmented(0, "geneve"), "of type geneve, which the namespace helper cannot"),
            ({"underlay_address": "192.0.2.77"}, segmented(0), "does not have the address 192.0"),
            ({"vlan_parent": "sgnone"}, segmented(0, "vlan", 5), "trunk sgnone does not exist"),
        ],
    )
    def test_what_is_missing_is_named(
        self, tmp_path: Path, options: dict[str, Any], info: NetworkInfo, words: str
    ) -> None:
        assert words in self.refused(managed(tmp_path, **options), info).message

    def test_vlan_where_the_kernel_has_it_and_a_sentence_where_not(self, tmp_path: Path) -> None:
        trunk = f"sgt{uuid.uuid4().hex[:8]}"
        run("ip", "link", "add", "name", trunk, "type", "veth", "peer", "name", f"{trunk}p")
        probe = ["ip", "link", "add", "link", trunk, "name", f"{trunk}v", "type", "vlan", "id", "9"]
        has_vlan = subprocess.run(probe, capture_output=True, check=False).returncode == 0
        helper = managed(tmp_path, vlan_parent=trunk)
        info = segmented(0, "vlan", 5)
        try:
            if not has_vlan:
                assert "no 802.1Q" in self.refused(helper, info).message
                return
            share_network = ShareNetwork(str(uuid.uuid4()), "project", NetworkKind.MANAGED)
            server = a_server(info, share_network)
            ComputeHelperContract.get(helper, server, share_network)
            bridge = bridge_name(share_network.id)
            assert "802.1Q id 5" in run("ip", "-d", "link", "show", "master", bridge)
            helper.delete_share_server(context(), server)
            assert f"@{trunk}:" not in run("ip", "link").replace(f"{trunk}v@{trunk}:", "")
        finally:
            run("ip", "link", "del", "dev", trunk)

    def test_one_bridge_for_all_is_refused_in_managed_mode(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="one bridge would join them all"):
            managed(tmp_path, bridge="br0")
