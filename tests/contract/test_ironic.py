"""The contract on Ironic, with the real API and fake hardware, and what is particular to it."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from openstack.baremetal.v1.node import Node
from openstack.connection import Connection

from tests.contract.compute_helper_suite import ComputeHelperContract, NetworkFor
from tests.openstack import baremetal
from tests.openstack.cloud import OpenStack
from worker.helpers.compute.ironic import IronicComputeHelper, IronicOptions
from worker.model import DriverMode, NetworkInfo, NetworkKind, ShareNetwork
from worker.plugin import Setting

# The first test of a checkout installs OpenStack and prepares its tables.
pytestmark = pytest.mark.timeout(420)

CLASS = "contract"
IMAGE = "http://images.example/share-server.qcow2"


@pytest.fixture(scope="module")
def admin(openstack_with_ironic: OpenStack) -> Iterator[Connection]:
    with openstack_with_ironic.connect() as connection:
        yield connection


@pytest.fixture(scope="module")
def nodes(admin: Connection) -> Iterator[list[Node]]:
    made = baremetal.enrol(admin, CLASS, 2)
    yield made
    baremetal.remove(admin, made)


@pytest.fixture(scope="module")
def ports(admin: Connection) -> Iterator[list[Any]]:
    """Two ports as the network helper makes them, on addresses that are this machine's too."""
    network = admin.network.create_network(name="ironic-contract")
    subnet = admin.network.create_subnet(
        network_id=network.id, cidr="127.71.0.0/24", ip_version=4, enable_dhcp=False
    )
    made = [
        admin.network.create_port(network_id=network.id, fixed_ips=[{"subnet_id": subnet.id}])
        for _ in range(2)
    ]
    yield made
    for port in made:
        admin.network.delete_port(port)
    admin.network.delete_network(network)


@pytest.fixture(scope="module")
def private_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("ironic") / "id_ed25519"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(file)
    file.chmod(0o600)
    return file


@pytest.fixture
def options(
    openstack_with_ironic: OpenStack, nodes: list[Node], private_key: Path
) -> dict[str, Any]:
    return openstack_with_ironic.auth() | {
        "resource_class": CLASS,
        "image": IMAGE,
        "image_checksum": "0" * 32,
        "ssh_private_key_file": private_key,
        "wait_for_ssh": False,
        "poll_interval": 0.2,
    }


def make_helper(options: dict[str, Any]) -> IronicComputeHelper:
    setting = Setting("backend", DriverMode.FLAT_MULTI_SVM, Path("/nonexistent"))
    return IronicComputeHelper(setting, IronicOptions(**options))


class Seen:
    """All that Ironic and Neutron have of share servers."""

    def __init__(self, admin: Connection, nodes: list[Node], ports: list[Any]) -> None:
        self._admin = admin
        self._nodes = nodes
        self._ports = ports

    def state(self) -> Any:
        ironic = self._admin.baremetal
        baremetal.settle(self._admin, self._nodes)
        allocations = [(one.name, one.state, one.node_id) for one in ironic.allocations()]
        nodes = [
            (
                *(node.id, node.provision_state, node.instance_id, node.instance_info),
                *ironic.list_node_vifs(node),
            )
            for node in (ironic.get_node(made.id) for made in self._nodes)
        ]
        ports = [self._admin.network.get_port(port.id).binding_host_id for port in self._ports]
        return sorted(allocations), nodes, ports


@pytest.fixture
def outside(admin: Connection, nodes: list[Node], ports: list[Any]) -> Seen:
    return Seen(admin, nodes, ports)


@pytest.fixture
def network_for(ports: list[Any]) -> NetworkFor:
    def network(number: int) -> NetworkInfo:
        port = ports[number]
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


class TestIronicComputeHelper(ComputeHelperContract):
    @pytest.fixture
    def helper(self, options: dict[str, Any]) -> IronicComputeHelper:
        return make_helper(options)
