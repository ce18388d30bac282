"""Share servers on bare metal through the whole engine: real Neutron and Ironic, fake hardware."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncssh
import pytest
from openstack.connection import Connection
from openstack.network.v2.subnet import Subnet

from tests.openstack import baremetal
from tests.openstack.cloud import OpenStack
from tests.support.deployment import Deployment
from tests.support.leftovers import of_tables
from tests.support.pace import limit
from tests.support.services import RedisServer
from worker.errors import RequestFailed
from worker.helpers.network.neutron.managed import DEVICE_OWNER

# The first test of a checkout installs OpenStack and prepares its tables.

NETWORKS, SHARES = 4, 20
CLASS = "servers"


@dataclass
class Metal:
    """A deployment whose share servers are Ironic's nodes; ``networks`` are its share networks."""

    deployment: Deployment
    admin: Connection
    tokens: Path
    networks: list[str]

    def create(self, network: str) -> str:
        return self.deployment.client.submit(
            "create_share", self.deployment.payload(size=1, share_network_id=network)
        )

    def delete(self, *share_ids: str) -> None:
        client, payload = self.deployment.client, self.deployment.payload
        asked = [client.submit("delete_share", payload(share_id=share)) for share in share_ids]
        for operation in asked:
            assert client.result(operation, timeout=limit())["status"] == "deleted"

    def deployed(self) -> dict[str, str]:
        """The nodes that are deployed, and as which share server."""
        nodes = self.admin.baremetal.nodes(resource_class=CLASS, provision_state="active")
        return {node.id: node.instance_id for node in nodes}

    def leftovers(self) -> list[str]:
        """Name what Ironic and Neutron still have of share servers."""
        ironic = self.admin.baremetal
        nodes = list(ironic.nodes(resource_class=CLASS, details=True))
        return [
            *(f"allocation {one.name}: {one.state}" for one in ironic.allocations()),
            *(
                f"node {node.name}: {node.provision_state} {node.instance_id} {node.instance_info}"
                for node in nodes
                if node.provision_state != "available" or node.instance_id or node.instance_info
            ),
            *(f"VIF {vif} of {node.name}" for node in nodes for vif in ironic.list_node_vifs(node)),
            *(f"port {port.name}" for port in self.admin.network.ports(device_owner=DEVICE_OWNER)),
        ]


def settings(openstack: OpenStack, key: Path) -> str:
    login = "\n".join(f'{name} = "{value}"' for name, value in openstack.auth().items())
    return f"""
[backends.metal]
mode = "managed_multi_svm"
share_driver = "fake"
compute_helper = "ironic"
network_helpers = ["neutron"]
[backends.metal.driver]
check_servers = false
[backends.metal.network.neutron]
{login}
[backends.metal.compute]
{login}
resource_class = "{CLASS}"
image = "http://images.example/share-server.qcow2"
image_checksum = "{"0" * 32}"
ssh_private_key_file = "{key}"
wait_for_ssh = false
poll_interval = 1.0
"""


@pytest.fixture(scope="module")
def admin(openstack_with_ironic: OpenStack) -> Iterator[Connection]:
    """A cloud with the nodes, for all tests."""
    with openstack_with_ironic.connect() as connection:
        nodes = baremetal.enrol(connection, CLASS, NETWORKS)
        yield connection
        baremetal.remove(connection, nodes)


@pytest.fixture(scope="module")
def subnets(admin: Connection) -> Iterator[list[Subnet]]:
    """The networks of the tenant."""
    made = []
    for number in range(NETWORKS):
        network = admin.network.create_network(name=f"tenant-{number}")
        cidr = f"10.60.{number}.0/24"
        made.append(admin.network.create_subnet(network_id=network.id, cidr=cidr, ip_version=4))
    yield made
    for subnet in made:
        admin.network.delete_network(subnet.network_id)


@pytest.fixture
def metal(
    tmp_path: Path,
    shared_redis: RedisServer,
    openstack_with_ironic: OpenStack,
    admin: Connection,
    subnets: list[Subnet],
) -> Iterator[Metal]:
    """A deployment of the test's own: nobody works any more on what a failed one left."""
    (tokens := tmp_path / "tokens").mkdir()
    key = tmp_path / "key"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(key)
    with shared_redis.client() as client:
        client.flushall()
    places = ("allocation", "vif", "deploy", "undeploy")
    deployment = Deployment(
        *(tmp_path, f"sqlite:///{tmp_path / 'sw.db'}", shared_redis),
        settings(openstack_with_ironic, key),
    )
    try:
        deployment.start(
            SHAREWRIGHT_FAILPOINTS=";".join(f"ironic.after_{place}=kill" for place in places),
            SHAREWRIGHT_FAILPOINT_TOKENS=str(tokens),
        )
        networks = [
            str(
                deployment.ask(
                    "create_share_network",
                    neutron_net_id=subnet.network_id,
                    neutron_subnet_id=subnet.id,
                )["id"]
            )
            for subnet in subnets
        ]
        yield Metal(deployment, admin, tokens, networks)
    finally:
        deployment.close()


@pytest.fixture(autouse=True)
def nothing_left(cleared: None, metal: Metal) -> Iterator[None]:
    """Every test ends with all shares deleted: then nothing of any share server is left."""
    yield
    metal.deployment.settle()
    baremetal.settle(metal.admin, list(metal.admin.baremetal.nodes(resource_class=CLASS)))
    assert metal.leftovers() == []
    assert [line for line in of_tables(metal.deployment.engine) if "server" in line] == []


def test_twenty_shares_on_four_networks(metal: Metal) -> None:
    """The workers are killed on the way, at each place once."""
    tokens = [
        metal.tokens / f"ironic.after_{place}@1"
        for place in ("allocation", "vif", "deploy", "undeploy")
    ]
    for token in tokens:
        token.touch()
    asked = [metal.create(metal.networks[number % NETWORKS]) for number in range(SHARES)]
    made = [metal.deployment.client.result(operation, timeout=limit()) for operation in asked]
    assert [share["status"] for share in made] == ["available"] * SHARES
    servers = {share["share_server_id"] for share in made}
    assert len(servers) == NETWORKS
    assert set(metal.deployed().values()) == servers
    metal.delete(*(share["id"] for share in made))
    metal.deployment.settle()  # the servers go after their last shares
    assert [token.name for token in tokens if token.exists()] == [], "not everybody was killed"


def test_a_share_server_too_many(metal: Metal) -> None:
    """There is no fifth node: Ironic's own words, and nothing is left of the attempt."""
    nodes = list(metal.admin.baremetal.nodes(resource_class=CLASS))
    for node in nodes:
        metal.admin.baremetal.set_node_maintenance(node)
    with pytest.raises(RequestFailed, match="no available nodes match the resource class") as left:
        metal.deployment.client.result(metal.create(metal.networks[0]), timeout=limit())
    assert left.value.code == "compute_exhausted"
    for node in nodes:
        metal.admin.baremetal.unset_node_maintenance(node)
    metal.deployment.settle()
    shares = metal.deployment.ask("list_shares")["shares"]
    assert [share["status"] for share in shares] == ["error"]
    metal.delete(*(share["id"] for share in shares))
