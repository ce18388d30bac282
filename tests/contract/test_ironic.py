"""The contract on Ironic, with the real API and fake hardware, and what is particular to it."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncssh
import pytest
import yaml
from openstack.baremetal.v1.node import Node
from openstack.connection import Connection
from openstack.network.v2.port import Port
from openstack.network.v2.subnet import Subnet
from pydantic import ValidationError

from tests.openstack import baremetal
from tests.openstack.clearing import clear
from tests.openstack.cloud import OpenStack
from tests.support.machines import Lan, address_of
from tests.support.services import wait_until
from worker.errors import ErrorCode, Fatal, LeaseLost, NotReady, ObjectKind, Retryable
from worker.helpers.compute.ironic import IronicComputeHelper, IronicOptions
from worker.helpers.network.neutron.managed import DEVICE_OWNER
from worker.model import DriverMode, NetworkInfo, NetworkKind, ShareNetwork, ShareServer
from worker.plugin import BackendContext
from worker.systems.openstack.client import OpenStack as Client
from worker.systems.openstack.client import OpenStackOptions
from worker.testing.calls import GuardThatEnds, context
from worker.testing.compute_helper import ComputeHelperContract, NetworkFor, a_server

# The first test of a checkout installs OpenStack and prepares its tables.

pytestmark = pytest.mark.usefixtures("cleared")

CLASS = "contract"
IMAGE = "http://images.example/share-server.qcow2"


@pytest.fixture(scope="module")
def cloud(openstack_with_ironic: OpenStack) -> OpenStack:
    return openstack_with_ironic


@pytest.fixture(scope="module")
def admin(cloud: OpenStack) -> Iterator[Connection]:
    with cloud.connect() as connection:
        yield connection


@pytest.fixture(scope="module")
def nodes(admin: Connection) -> Iterator[list[Node]]:
    made = baremetal.enrol(admin, CLASS, 2)
    yield made
    baremetal.remove(admin, made)


@pytest.fixture(scope="module")
def subnet(admin: Connection) -> Iterator[Subnet]:
    network = admin.network.create_network(name="ironic-contract")
    yield admin.network.create_subnet(
        network_id=network.id, cidr="127.71.0.0/24", ip_version=4, enable_dhcp=False
    )
    admin.network.delete_network(network)


@pytest.fixture
def ports(admin: Connection, subnet: Subnet) -> list[Port]:
    """Two ports as the network helper makes them, on addresses that are this machine's too."""
    return [
        admin.network.create_port(
            network_id=subnet.network_id,
            fixed_ips=[{"subnet_id": subnet.id}],
            device_owner=DEVICE_OWNER,
        )
        for _ in range(2)
    ]


@pytest.fixture(scope="module")
def private_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("ironic") / "id_ed25519"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(file)
    file.chmod(0o600)
    return file


@pytest.fixture
def options(cloud: OpenStack, nodes: list[Node], private_key: Path) -> dict[str, Any]:
    return cloud.auth() | {
        "resource_class": CLASS,
        "image": IMAGE,
        "image_checksum": "0" * 32,
        "ssh_private_key_file": private_key,
        "wait_for_ssh": False,
        "poll_interval": 0.2,
    }


def make_helper(options: dict[str, Any]) -> IronicComputeHelper:
    backend = BackendContext("backend", DriverMode.FLAT_MULTI_SVM, Path("/nonexistent"))
    return IronicComputeHelper(backend, IronicOptions(**options))


class Seen:
    """All that Ironic and Neutron have of share servers."""

    def __init__(self, admin: Connection, nodes: list[Node], ports: list[Port]) -> None:
        self.admin = admin
        self._nodes = nodes
        self._ports = ports

    def state(self) -> Any:
        ironic = self.admin.baremetal
        baremetal.settle(self.admin, self._nodes)
        allocations = [(one.name, one.state, one.node_id) for one in ironic.allocations()]
        nodes = [
            (
                *(node.id, node.provision_state, node.instance_id, node.instance_info),
                *ironic.list_node_vifs(node),
            )
            for node in (ironic.get_node(made.id) for made in self._nodes)
        ]
        ports = [self.admin.network.get_port(port.id).binding_host_id for port in self._ports]
        return sorted(allocations), nodes, ports


def configdrive(cloud: OpenStack, server: ShareServer) -> Any:
    """What the server's node is told at its first boot; Ironic's API shows it to nobody."""
    with closing(sqlite3.connect(cloud.home / "ironic" / "ironic.db")) as database:
        ours = "SELECT instance_info FROM nodes WHERE instance_uuid = ?"
        ((info,),) = database.execute(ours, (server.id,)).fetchall()
    return json.loads(info)["configdrive"]


def record(cloud: OpenStack, node_id: str, **columns: str | None) -> None:
    """Have Ironic's table say of a node what no fake hardware can be made to do."""
    assignments = ", ".join(f"{column} = ?" for column in columns)
    with closing(sqlite3.connect(cloud.home / "ironic" / "ironic.db", timeout=30)) as database:
        database.execute(
            f"UPDATE nodes SET {assignments} WHERE uuid = ?", (*columns.values(), node_id)
        )
        database.commit()


@pytest.fixture
def external(admin: Connection, nodes: list[Node], ports: list[Port]) -> Seen:
    return Seen(admin, nodes, ports)


@pytest.fixture
def network_for(ports: list[Port]) -> NetworkFor:
    def network(number: int) -> NetworkInfo:
        port = ports[number % len(ports)]
        return NetworkInfo(
            cidr="127.71.0.0/24",
            netmask="255.255.255.0",
            prefix_length=24,
            ip_version=4,
            broadcast="127.71.0.255",
            gateway="127.71.0.1",
            addresses=(port.fixed_ips[0]["ip_address"],),
            ports=(port.id,),
            mac_addresses=(port.mac_address,),
        )

    return network


def test_what_a_failed_test_leaves_is_cleared(
    *,
    cloud: OpenStack,
    admin: Connection,
    nodes: list[Node],
    options: dict[str, Any],
    network_for: NetworkFor,
) -> None:
    """A deployed node, one that could not be deployed, and an allocation without a node."""
    network = ShareNetwork(str(uuid.uuid4()), "project", NetworkKind.FLAT_POOL)
    helper = make_helper(options)
    _, failed = (
        ComputeHelperContract.get(helper, a_server(network_for(number), network), network).server_id
        for number in range(len(nodes))
    )
    assert failed is not None
    baremetal.settle(admin, nodes)
    record(cloud, failed, provision_state="deploy failed", target_provision_state="active")
    admin.baremetal.set_node_maintenance(failed, "it burns")
    admin.baremetal.create_allocation(name=f"sw-{uuid.uuid4()}", resource_class="nobodys")
    assert len(list(admin.baremetal.allocations())) == 3
    clear(admin)
    assert list(admin.baremetal.allocations()) == []
    assert list(admin.network.ports(device_owner=DEVICE_OWNER)) == []
    for node in (admin.baremetal.get_node(made.id) for made in nodes):
        assert (node.provision_state, node.is_maintenance) == ("available", False)
        assert (node.instance_id, node.instance_info) == (None, {})
        assert admin.baremetal.list_node_vifs(node) == []


class TestIronicComputeHelper(ComputeHelperContract):
    @pytest.fixture
    def helper(self, options: dict[str, Any]) -> IronicComputeHelper:
        return make_helper(options)

    @pytest.fixture
    def failing(
        self,
        helper: IronicComputeHelper,
        new_server: Callable[[int], ShareServer],
        network_for: NetworkFor,
    ) -> tuple[IronicComputeHelper, ShareServer]:
        """More ports than its node has network cards."""
        both = network_for(0).ports + network_for(1).ports
        info = dataclasses.replace(network_for(0), ports=both)
        return helper, dataclasses.replace(new_server(0), network_info=info)

    def test_a_reachable_server_takes_commands(  # type: ignore[override]  # it has more fixtures
        self,
        cloud: OpenStack,
        options: dict[str, Any],
        new_server: Any,
        share_network: ShareNetwork,
        tmp_path: Path,
    ) -> None:
        """A machine with a real sshd stands in for the node; what Ironic was told makes its key."""
        with Lan.made(tmp_path) as lan:
            server = new_server(0)
            info = dataclasses.replace(server.network_info, addresses=(address_of(2),))
            server = dataclasses.replace(server, network_info=info)
            helper = make_helper(
                options
                | {
                    "ssh_private_key_file": lan.directory / "key",
                    "ssh_connect_timeout": 1.0,
                    "server_directory": str(lan.directory / "var"),
                    "wait_for_ssh": True,
                }
            )
            self.until(helper, server, share_network, "does not serve yet")
            machine = lan.machine(server.id)
            assert machine.address == address_of(2)
            told = configdrive(cloud, server)
            machine.sshd.close()
            machine.install(yaml.safe_load(told["user_data"])["ssh_keys"]["ed25519_private"])
            machine.start()
            self.until(helper, server, share_network, "still installs its software")
            (lan.directory / "var").mkdir()
            (lan.directory / "var" / "ready").touch()
            server = dataclasses.replace(server, details=self.get(helper, server, share_network))
            assert helper.shell(server).run(["sh", "-c", "exit 3"], check=False).exit_code == 3
            self.delete(helper, server)

    @staticmethod
    def until(
        helper: IronicComputeHelper, server: ShareServer, network: ShareNetwork, words: str
    ) -> None:
        """Ask until the helper waits for this."""

        def waits_for_it() -> bool:
            assert server.network_info is not None
            with pytest.raises(NotReady) as wait:
                helper.get_share_server(context(), server, network, server.network_info, ())
            return words in wait.value.message

        wait_until(waits_for_it, words)

    def test_a_node_is_told_who_it_is_and_where(
        self, helper: Any, new_server: Any, share_network: ShareNetwork, cloud: OpenStack
    ) -> None:
        server = new_server(0)
        self.get(helper, server, share_network)
        told = configdrive(cloud, server)
        assert told["meta_data"] == {"uuid": server.id, "hostname": f"sw-{server.id}"}
        (network,) = told["network_data"]["networks"]
        assert network["ip_address"] == server.network_info.addresses[0]
        self.delete(helper, server)

    def test_no_node_is_free(
        self, options: dict[str, Any], external: Seen, new_server: Any, share_network: ShareNetwork
    ) -> None:
        empty = external.state()
        helper, server = make_helper(options | {"resource_class": "none"}), new_server(0)
        with pytest.raises(Fatal, match="no available nodes match the resource class none"):
            self.get(helper, server, share_network)
        self.delete(helper, server)
        assert external.state() == empty

    def test_a_node_that_goes_into_maintenance_or_is_locked(
        self,
        helper: Any,
        external: Seen,
        cloud: OpenStack,
        new_server: Any,
        share_network: ShareNetwork,
    ) -> None:
        admin = external.admin
        empty = external.state()
        server = new_server(0)
        with pytest.raises(LeaseLost):
            self.get(helper, server, share_network, context(GuardThatEnds(1)))
        node = admin.baremetal.get_allocation(f"sw-{server.id}").node_id
        record(cloud, node, reservation="testhost")
        try:
            self.until(helper, server, share_network, "locked by conductor testhost")
            user = Client(OpenStackOptions(**cloud.auth()), ErrorCode.COMPUTE_FAILED)
            with pytest.raises(Retryable, match="is locked by host"):
                user.change(
                    "attach",
                    lambda c: c.baremetal.attach_vif_to_node(node, "port", retry_on_conflict=False),
                    about=ObjectKind.SHARE_SERVER.ref(server.id),
                    guard=lambda: None,
                )
        finally:
            record(cloud, node, reservation=None)
        admin.baremetal.set_node_maintenance(node, "its fan is broken")
        with pytest.raises(Fatal, match="maintenance: its fan is broken") as failure:
            self.get(helper, server, share_network)
        assert failure.value.share_server_id == node
        self.delete(helper, server)
        admin.baremetal.unset_node_maintenance(node)
        assert external.state() == empty

    def test_a_node_that_can_be_neither_deployed_nor_undeployed(
        self,
        helper: Any,
        external: Seen,
        cloud: OpenStack,
        new_server: Any,
        share_network: ShareNetwork,
    ) -> None:
        empty = external.state()
        server = new_server(0)
        node = self.get(helper, server, share_network).server_id
        baremetal.settle(external.admin, [external.admin.baremetal.get_node(node)])
        record(cloud, node, provision_state="deploy failed", last_error="It burns.")
        with pytest.raises(Fatal, match=r"is deploy failed.* It burns\.") as failure:
            self.get(helper, server, share_network)
        assert failure.value.share_server_id == node
        cloud.stop("neutron")  # whose ports Ironic then cannot unbind
        try:
            with pytest.raises(Retryable, match="not be undeployed: Failed to tear down") as left:
                self.delete(helper, server)
        finally:
            cloud.start_again("neutron")
        assert left.value.share_server_id == node
        self.delete(helper, server)
        # Ironic had forgotten the port before it could unbind it: it goes with deallocate_network.
        assert external.state()[:2] == empty[:2]
        for port in server.network_info.ports:
            external.admin.network.update_port(port, binding_host_id="")
        assert external.state() == empty


@pytest.mark.parametrize(
    ("extra", "seen"),
    [
        ({}, False),
        ({"share_server": "another", "backend": "backend"}, False),
        ({"share_server": "OWNER", "backend": "another"}, False),
        ({"share_server": "OWNER", "backend": "backend"}, True),
    ],
)
def test_an_audit_sees_only_what_is_the_backends(
    admin: Connection, options: dict[str, Any], extra: dict[str, str], *, seen: bool
) -> None:
    owner = str(uuid.uuid4())
    marks = {key: value.replace("OWNER", owner) for key, value in extra.items()}
    made = admin.baremetal.create_allocation(
        name=f"sw-{owner}", resource_class="nobodys", extra=marks
    )
    listed = [one.owner_id for one in make_helper(options).owned(context())]
    admin.baremetal.delete_allocation(made)
    assert listed == [owner] * seen


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"resource_class": "none"}, "no node of resource class none"),
        ({"traits": ("CUSTOM_GOLD",)}, "None of the 2 nodes .* has the traits CUSTOM_GOLD"),
        ({"password": "not-it"}, "Keystone refuses the login"),
    ],
)
def test_what_cannot_work_is_refused_at_start(
    options: dict[str, Any], wrong: dict[str, Any], words: str
) -> None:
    make_helper(options).check()
    with pytest.raises(Fatal, match=words):
        make_helper(options | wrong).check()


def test_what_an_image_needs() -> None:
    login = {"cloud": "c", "resource_class": "r", "ssh_private_key_file": "/key"}
    with pytest.raises(ValidationError, match="needs image_checksum"):
        IronicOptions(**login, image=IMAGE)
    with pytest.raises(ValidationError, match="image"):
        IronicOptions(**login, image="debian")
    assert IronicOptions(**login, image=str(uuid.uuid4())).image_checksum is None
