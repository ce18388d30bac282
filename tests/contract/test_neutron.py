"""The contract on the Neutron network helper, with a real Keystone and Neutron."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openstack.connection import Connection
from sqlalchemy import select

from tests.openstack.clearing import clear
from tests.openstack.cloud import OpenStack
from worker.db.core.engine import engine_for, reading
from worker.db.networks.addresses import DatabaseAddressStore
from worker.db.tables.all import metadata
from worker.db.tables.main import addresses
from worker.helpers.network.neutron.helper import NeutronNetworkHelper, NeutronOptions
from worker.helpers.network.neutron.managed import DEVICE_OWNER
from worker.model import DriverMode, NetworkKind, ShareNetwork
from worker.plugin import BackendContext
from worker.testing.calls import context
from worker.testing.network_helper import NetworkHelperContract, a_server

# The first test of a checkout installs OpenStack and prepares its tables.
pytestmark = pytest.mark.usefixtures("cleared")


def make_helper(
    openstack: OpenStack, store: DatabaseAddressStore, mode: DriverMode, **options: Any
) -> NeutronNetworkHelper:
    backend = BackendContext("backend", mode, Path("/nonexistent"))
    return NeutronNetworkHelper(backend, NeutronOptions(**openstack.auth(), **options), store)


@pytest.fixture(scope="module")
def admin(openstack: OpenStack) -> Iterator[Connection]:
    with openstack.connect() as connection:
        yield connection


@pytest.fixture(scope="module")
def tenant_network(admin: Connection) -> Iterator[tuple[str, str]]:
    network = admin.network.create_network(name=f"tenant-{uuid.uuid4()}")
    subnet = admin.network.create_subnet(
        network_id=network.id,
        name=f"subnet of {network.name}",
        cidr="10.30.0.0/24",
        ip_version=4,
        host_routes=[{"destination": "192.0.2.0/24", "nexthop": "10.30.0.254"}],
    )
    yield network.id, subnet.id
    admin.network.delete_network(network.id)


@pytest.fixture
def store(sqlite_url: str) -> DatabaseAddressStore:
    metadata.create_all(engine_for(sqlite_url))
    return DatabaseAddressStore(sqlite_url, rest=0.0)


class Held:
    """All that Neutron, and the address book, have of ours."""

    def __init__(self, admin: Connection, url: str) -> None:
        self._admin = admin
        self._url = url

    def state(self) -> Any:
        neutron = self._admin.network
        ports = [
            (port.id, port.name, port.device_id, tuple(port.tags))
            for port in neutron.ports(device_owner=DEVICE_OWNER)
        ]
        ours = [
            (thing.id, tuple(sorted(thing.tags)))
            for things in (neutron.networks(), neutron.subnets(), neutron.routers())
            for thing in things
            if thing.name.startswith("sharewright-")
        ]
        with reading(engine_for(self._url)) as connection:
            held = addresses.c.share_server_id
            rows = connection.execute(select(held).where(held.is_not(None))).all()
        return sorted(ports), sorted(ours), sorted(row[0] for row in rows)


@pytest.fixture
def external(admin: Connection, sqlite_url: str) -> Held:
    return Held(admin, sqlite_url)


def test_what_a_failed_test_leaves_is_cleared(
    openstack: OpenStack,
    store: DatabaseAddressStore,
    admin: Connection,
    external: Held,
    tenant_network: tuple[str, str],
) -> None:
    helper = make_helper(
        *(openstack, store, DriverMode.MANAGED_MULTI_SVM), managed_cidrs=("10.64.0.0/16",)
    )
    network, subnet = tenant_network
    for share_network in (
        ShareNetwork(
            *(str(uuid.uuid4()), "project", NetworkKind.NEUTRON),
            neutron_net_id=network,
            neutron_subnet_id=subnet,
        ),
        ShareNetwork(str(uuid.uuid4()), "project", NetworkKind.MANAGED),
    ):
        server = a_server(share_network)
        helper.allocate_network(context(), server, share_network, 1)
    ports, networks, _ = external.state()
    assert len(ports) == 2
    assert len(networks) > 0
    clear(admin)
    assert external.state()[:2] == ([], [])


class TestTenantsNetwork(NetworkHelperContract):
    @pytest.fixture
    def helper(self, openstack: OpenStack, store: DatabaseAddressStore) -> NeutronNetworkHelper:
        return make_helper(openstack, store, DriverMode.MANAGED_MULTI_SVM)

    @pytest.fixture
    def share_network(self, tenant_network: tuple[str, str]) -> ShareNetwork:
        network, subnet = tenant_network
        return ShareNetwork(
            str(uuid.uuid4()),
            "project",
            NetworkKind.NEUTRON,
            neutron_net_id=network,
            neutron_subnet_id=subnet,
        )


class TestManagedNetwork(NetworkHelperContract):
    @pytest.fixture
    def helper(self, openstack: OpenStack, store: DatabaseAddressStore) -> NeutronNetworkHelper:
        return make_helper(
            *(openstack, store, DriverMode.MANAGED_MULTI_SVM), managed_cidrs=("10.64.0.0/16",)
        )

    @pytest.fixture
    def share_network(self) -> ShareNetwork:
        return ShareNetwork(str(uuid.uuid4()), "project", NetworkKind.MANAGED)
