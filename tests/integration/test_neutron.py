"""Shares on real Neutron networks, through the whole engine."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from openstack.connection import Connection
from openstack.network.v2.port import Port
from sqlalchemy import not_, select

from tests.openstack.cloud import OpenStack
from tests.support.deployment import Deployment
from tests.support.leftovers import of_tables
from tests.support.pace import limit
from tests.support.services import RedisServer
from worker.db.audits import is_undone
from worker.db.core.engine import reading
from worker.db.tables.main import share_servers
from worker.errors import RequestFailed
from worker.helpers.network.neutron.managed import DEVICE_OWNER

# The first test of a checkout installs OpenStack and prepares its tables.

NETWORKS, SHARES = 5, 50


@dataclass
class Cloud:
    """A deployment whose backends get their addresses from Neutron."""

    deployment: Deployment
    admin: Connection
    tokens: Path

    def ports(self) -> list[Port]:
        return list(self.admin.network.ports(device_owner=DEVICE_OWNER))

    def tenant_network(self, number: int, **network: str) -> dict[str, str]:
        """Make a network as a tenant has it; return what its share network names."""
        made = self.admin.network.create_network(name=f"tenant-{number}", **network)
        subnet = self.admin.network.create_subnet(
            network_id=made.id, cidr=f"10.40.{number}.0/24", ip_version=4
        )
        return {"neutron_net_id": made.id, "neutron_subnet_id": subnet.id}

    def share_network(self, **options: object) -> str:
        return str(self.deployment.ask("create_share_network", **options)["id"])

    def create(self, network: str, backend: str) -> str:
        return self.deployment.client.submit(
            "create_share",
            self.deployment.payload(size=1, share_network_id=network, share_type=backend),
        )

    def delete(self, *share_ids: str) -> None:
        client, payload = self.deployment.client, self.deployment.payload
        asked = [client.submit("delete_share", payload(share_id=share)) for share in share_ids]
        for operation in asked:
            assert client.result(operation, timeout=limit())["status"] == "deleted"
        self.deployment.settle()

    def addresses(self) -> dict[str, tuple[str, str]]:
        """Each server's backend and address as the database has them."""
        with reading(self.deployment.engine) as connection:
            return {
                row.id: (row.backend, row.network_info["addresses"][0])
                for row in connection.execute(select(share_servers).where(not_(is_undone())))
            }


def backend(name: str, mode: str, openstack: OpenStack, **options: str) -> str:
    lines = "\n".join(f'{key} = "{value}"' for key, value in (openstack.auth() | options).items())
    return (
        f'[backends.{name}]\nmode = "{mode}"\nshare_driver = "fake"\ncompute_helper = "fake"\n'
        f'network_helpers = ["neutron"]\n[backends.{name}.network.neutron]\n{lines}\n'
    )


@pytest.fixture(scope="module")
def admin(openstack: OpenStack) -> Iterator[Connection]:
    with openstack.connect() as connection:
        yield connection


@pytest.fixture(scope="module")
def flat_networks(admin: Connection) -> list[str]:
    """Two networks of the operator's, in advance, under the names that the file has."""
    names = ["blue", "green"]
    for number, name in enumerate(names):
        network = admin.network.create_network(
            name=name, provider_network_type="flat", provider_physical_network=f"phys-{name}"
        )
        admin.network.create_subnet(
            name=f"{name}-subnet",
            network_id=network.id,
            cidr=f"10.5{number}.0.0/24",
            ip_version=4,
        )
    return names


@pytest.fixture(scope="module")
def cloud(
    tmp_path_factory: pytest.TempPathFactory,
    shared_redis: RedisServer,
    openstack: OpenStack,
    admin: Connection,
    flat_networks: list[str],
) -> Iterator[Cloud]:
    directory = tmp_path_factory.mktemp("neutron")
    (tokens := directory / "tokens").mkdir()
    names = ["tenants", "unbindable", *flat_networks]
    settings = "".join(
        [
            backend("tenants", "managed_multi_svm", openstack, binding_host="host1"),
            backend("unbindable", "managed_multi_svm", openstack, binding_host="unbindable1"),
            *(
                backend(
                    *(name, "flat_multi_svm", openstack),
                    neutron_net=name,
                    neutron_subnet=f"{name}-subnet",
                )
                for name in flat_networks
            ),
        ]
    )
    deployment = Deployment(
        directory, f"sqlite:///{directory / 'sw.db'}", shared_redis, settings, {"retry_time": 0.1}
    )
    try:
        deployment.start(
            concurrency=2,
            SHAREWRIGHT_FAILPOINTS="neutron.after_port=kill;neutron.after_subnet=kill",
            SHAREWRIGHT_FAILPOINT_TOKENS=str(tokens),
        )
        deployment.wait_reported(len(names))
        for name in names:
            specs = {"share_backend_name": name}
            deployment.ask("create_share_type", admin=True, name=name, extra_specs=specs)
        yield Cloud(deployment, admin, tokens)
    finally:
        deployment.close()


@pytest.fixture(autouse=True)
def nothing_left(cloud: Cloud, cleared: None) -> Iterator[None]:
    """Every test ends with all shares deleted: then Neutron has nothing of ours."""
    yield
    cloud.deployment.settle()
    assert cloud.ports() == []
    left = [
        thing.name
        for things in (cloud.admin.network.networks(), cloud.admin.network.routers())
        for thing in things
        if thing.name.startswith("sharewright-")
    ]
    assert left == []
    assert [line for line in of_tables(cloud.deployment.engine) if "server" in line] == []


def test_fifty_shares_on_five_networks(cloud: Cloud) -> None:
    """One port a network, tagged and with its server's id; none left when the shares are gone."""
    tenant = [cloud.tenant_network(number) for number in range(NETWORKS)]
    networks = [cloud.share_network(**options) for options in tenant]
    asked = [cloud.create(networks[number % NETWORKS], "tenants") for number in range(SHARES)]
    made = [cloud.deployment.client.result(operation, timeout=limit()) for operation in asked]
    assert [share["status"] for share in made] == ["available"] * SHARES
    servers = {share["share_server_id"] for share in made}
    ports = cloud.ports()
    assert len(servers) == len(ports) == NETWORKS
    assert {port.network_id for port in ports} == {options["neutron_net_id"] for options in tenant}
    for port in ports:
        assert port.device_id in servers
        assert set(port.tags) == {"sharewright", f"share_server={port.device_id}"}
        assert port.name == f"sharewright-{port.device_id}-0"
        assert port.binding_host_id == "host1"
        held = cloud.addresses()[port.device_id]
        assert held == ("tenants", port.fixed_ips[0]["ip_address"])
    cloud.delete(*(share["id"] for share in made))


def test_killed_between_the_port_and_its_row(cloud: Cloud) -> None:
    """The next attempt finds the port that the dead one made, and uses it."""
    network = cloud.share_network(**cloud.tenant_network(20))
    token = cloud.tokens / "neutron.after_port@1"
    token.touch()
    share = cloud.deployment.client.result(cloud.create(network, "tenants"), timeout=limit())
    assert not token.exists(), "no worker was killed"
    (port,) = cloud.ports()
    assert port.device_id == share["share_server_id"]
    assert set(port.tags) == {"sharewright", f"share_server={port.device_id}"}
    assert cloud.addresses()[port.device_id][1] == port.fixed_ips[0]["ip_address"]
    cloud.delete(share["id"])


def test_a_host_that_neutron_cannot_bind(cloud: Cloud) -> None:
    network = cloud.share_network(**cloud.tenant_network(21))
    with pytest.raises(RequestFailed) as failure:
        cloud.deployment.client.result(cloud.create(network, "unbindable"), timeout=limit())
    assert failure.value.code == "network_failed"
    assert "could not bind port" in failure.value.message
    assert "unbindable1" in failure.value.message
    (share,) = cloud.deployment.client.result(
        cloud.deployment.client.submit(
            "list_shares", cloud.deployment.payload(share_network_id=network)
        ),
        timeout=limit(),
    )["shares"]
    assert share["status"] == "error"
    cloud.deployment.settle()
    assert cloud.ports() == []
    cloud.delete(share["id"])


def test_two_backends_with_a_network_each(cloud: Cloud, flat_networks: list[str]) -> None:
    """The tenant's ids are ignored: every server is on its backend's own network."""
    network = cloud.share_network(
        neutron_net_id=str(uuid.uuid4()), neutron_subnet_id=str(uuid.uuid4())
    )
    made = [
        cloud.deployment.client.result(cloud.create(network, name), timeout=limit())
        for name in flat_networks
    ]
    where = dict(cloud.addresses().values())
    assert where["blue"].startswith("10.50.0.")
    assert where["green"].startswith("10.51.0.")
    cloud.delete(*(share["id"] for share in made))


@pytest.mark.parametrize("killed", [False, True])
def test_a_managed_network_lives_as_long_as_its_servers(cloud: Cloud, killed: bool) -> None:
    token = cloud.tokens / "neutron.after_subnet@1"
    if killed:
        token.touch()
    network = cloud.share_network(managed=True, cidr="10.77.0.0/26")
    share = cloud.deployment.client.result(cloud.create(network, "tenants"), timeout=limit())
    assert not token.exists(), "no worker was killed"
    (made,) = cloud.admin.network.networks(name=f"sharewright-{network}")
    (subnet,) = cloud.admin.network.subnets(network_id=made.id)
    (router,) = cloud.admin.network.routers(name=made.name)
    assert subnet.cidr == "10.77.0.0/26"
    assert f"share_network={network}" in made.tags
    (inside,) = cloud.admin.network.ports(device_id=router.id)
    assert inside.network_id == made.id
    (port,) = cloud.ports()
    assert port.network_id == made.id
    with reading(cloud.deployment.engine) as connection:
        info = connection.execute(
            select(share_servers.c.network_info).where(not_(is_undone()))
        ).scalar_one()
    assert (info["segmentation_type"], info["segmentation_id"]) == (
        made.provider_network_type,
        made.provider_segmentation_id,
    )
    assert (info["mtu"], info["gateway"]) == (made.mtu, subnet.gateway_ip)
    assert info["mac_addresses"] == [port.mac_address]
    cloud.delete(share["id"])
