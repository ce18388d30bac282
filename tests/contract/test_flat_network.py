"""The contract on the flat network helper with its real address book, and its own choices."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from worker.db.core.engine import engine_for, reading
from worker.db.networks.addresses import DatabaseAddressStore
from worker.db.tables.all import metadata
from worker.db.tables.main import addresses
from worker.errors import ConfigurationError, ErrorCode, Fatal
from worker.helpers.network.flat_network.helper import FlatNetworkHelper, FlatNetworkOptions
from worker.model import DriverMode, NetworkKind, ShareNetwork
from worker.plugin import BackendContext
from worker.testing.calls import context
from worker.testing.network_helper import NetworkHelperContract, a_server

REST = 3600.0
OWN = FlatNetworkOptions(
    subnet="10.20.0.0/24", gateway="10.20.0.1", ranges=("10.20.0.100-10.20.0.199",)
)


@pytest.fixture
def store(database_url: str) -> DatabaseAddressStore:
    metadata.create_all(engine_for(database_url))
    return DatabaseAddressStore(database_url, rest=REST)


def backend_of(name: str = "backend", *, share_network_addresses: bool = False) -> BackendContext:
    return BackendContext(
        name, DriverMode.FLAT_MULTI_SVM, Path("/nonexistent"), share_network_addresses
    )


def pool_network(*pool: str, subnet: str | None = None) -> ShareNetwork:
    return ShareNetwork(
        str(uuid.uuid4()),
        "project",
        NetworkKind.FLAT_POOL,
        flat_network_ip_pool=pool,
        flat_network_subnet=subnet,
    )


class Held:
    """The addresses table: who holds what."""

    def __init__(self, url: str) -> None:
        self._url = url

    def state(self) -> Any:
        with reading(engine_for(self._url)) as connection:
            rows = connection.execute(
                select(addresses.c.domain, addresses.c.address, addresses.c.share_server_id)
                .where(addresses.c.share_server_id.is_not(None))
                .order_by(addresses.c.domain, addresses.c.number)
            )
            return [tuple(row) for row in rows]


class TestOwnRange(NetworkHelperContract):
    @pytest.fixture
    def helper(self, store: DatabaseAddressStore) -> FlatNetworkHelper:
        return FlatNetworkHelper(backend_of(), OWN, store)

    @pytest.fixture
    def share_network(self) -> ShareNetwork:
        return ShareNetwork(str(uuid.uuid4()), "project", NetworkKind.NEUTRON)

    @pytest.fixture
    def external(self, database_url: str) -> Held:
        return Held(database_url)


class TestShareNetworkPool(TestOwnRange):
    @pytest.fixture
    def helper(self, store: DatabaseAddressStore) -> FlatNetworkHelper:
        return FlatNetworkHelper(
            backend_of(share_network_addresses=True), FlatNetworkOptions(), store
        )

    @pytest.fixture
    def share_network(self) -> ShareNetwork:
        return pool_network("2001:db8::/120")


class TestChoices:
    def test_the_backends_range_is_used_unless_it_says_otherwise(
        self, store: DatabaseAddressStore
    ) -> None:
        network = pool_network("10.9.0.0/24")
        for says, expected in ((False, "10.20.0.100"), (True, "10.9.0.1")):
            helper = FlatNetworkHelper(backend_of(share_network_addresses=says), OWN, store)
            info = helper.allocate_network(context(), a_server(network), network, 1)
            assert info.addresses == (expected,)
        assert info.cidr == "10.9.0.0/24"
        assert info.gateway is None
        assert info.attributes["domain"] == f"share_network:{network.id}"

    def test_backends_on_one_network_share_its_addresses(self, store: DatabaseAddressStore) -> None:
        network = pool_network("10.9.0.0/24")
        named = OWN.model_copy(update={"name": "blue"})
        taken = [
            FlatNetworkHelper(backend_of(backend), options, store)
            .allocate_network(context(), a_server(network), network, 1)
            .addresses[0]
            for backend, options in (("a", named), ("b", named), ("c", OWN))
        ]
        assert taken == ["10.20.0.100", "10.20.0.101", "10.20.0.100"]

    def test_the_whole_subnet_without_ranges(self, store: DatabaseAddressStore) -> None:
        options = FlatNetworkOptions(
            subnet="10.20.0.0/29", gateway="10.20.0.1", reserved=("10.20.0.4/31",)
        )
        network = pool_network("10.9.0.0/24")
        info = FlatNetworkHelper(backend_of(), options, store).allocate_network(
            context(), a_server(network), network, 3
        )
        assert info.addresses == ("10.20.0.2", "10.20.0.3", "10.20.0.6")

    def test_no_addresses_for_a_network_that_names_none(self, store: DatabaseAddressStore) -> None:
        helper = FlatNetworkHelper(
            backend_of(share_network_addresses=True), FlatNetworkOptions(), store
        )
        network = ShareNetwork("n", "project", NetworkKind.NEUTRON)
        with pytest.raises(Fatal, match="has no addresses of its own") as refused:
            helper.allocate_network(context(), a_server(network), network, 1)
        assert refused.value.code is ErrorCode.CONFIGURATION

    def test_a_pool_that_cannot_be_used_says_which_field(self, store: DatabaseAddressStore) -> None:
        helper = FlatNetworkHelper(
            backend_of(share_network_addresses=True), FlatNetworkOptions(), store
        )
        network = pool_network("10.9.0.1/24")
        with pytest.raises(Fatal, match="host bits") as refused:
            helper.allocate_network(context(), a_server(network), network, 1)
        assert refused.value.field == "flat_network_ip_pool"

    def test_a_subnet_changed_while_a_server_is_built(self, store: DatabaseAddressStore) -> None:
        network = pool_network("10.9.0.0/24")
        server = a_server(network)
        FlatNetworkHelper(backend_of(), OWN, store).allocate_network(context(), server, network, 1)
        moved = FlatNetworkHelper(backend_of(), FlatNetworkOptions(subnet="10.21.0.0/24"), store)
        with pytest.raises(Fatal, match="outside the subnet"):
            moved.allocate_network(context(), server, network, 1)
        moved.deallocate_network(context(), server)
        info = moved.allocate_network(context(), server, network, 1)
        assert info.addresses == ("10.21.0.1",)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({}, "no addresses to give out"),
            ({"gateway": "10.0.0.1"}, "gateway but no subnet"),
            ({"ranges": ["10.0.0.5"]}, "ranges but no subnet"),
            ({"subnet": "10.0.0.1/24"}, "option subnet: .* host bits"),
            ({"subnet": "10.0.0.0/24", "gateway": "10.0.1.1"}, "option gateway: .* outside"),
            ({"subnet": "10.0.0.0/24", "ranges": ["10.0.1.1"]}, "option ranges: .* not inside"),
            ({"subnet": "10.0.0.0/24", "reserved": ["x"]}, "option reserved: .* not an IP"),
        ],
    )
    def test_what_cannot_work_is_refused_at_start(
        self, options: dict[str, Any], words: str, tmp_path: Path
    ) -> None:
        unused = DatabaseAddressStore(f"sqlite:///{tmp_path}/unused.db", rest=REST)
        with pytest.raises(ConfigurationError, match=words):
            FlatNetworkHelper(backend_of(), FlatNetworkOptions(**options), unused)
