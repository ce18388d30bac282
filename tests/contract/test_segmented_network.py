"""The contract on segments with their real books, and what is particular to segments."""

from __future__ import annotations

import multiprocessing
import uuid
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from tests.support.pace import limit
from worker.db.core.engine import engine_for, reading, transaction
from worker.db.networks.addresses import DatabaseAddressStore
from worker.db.tables.all import metadata
from worker.db.tables.main import addresses
from worker.db.tables.networks import segment_holders, segments
from worker.errors import ConfigurationError, ErrorCode, Fatal, NotReady
from worker.helpers.network.segmented_network import SegmentedNetworkHelper, SegmentedNetworkOptions
from worker.model import (
    DriverMode,
    NetworkInfo,
    NetworkKind,
    Route,
    SegmentSource,
    ShareNetwork,
    ShareServer,
)
from worker.plugin import BackendContext
from worker.testing.calls import context
from worker.testing.network_helper import NetworkHelperContract, a_server

REST = 3600.0
OPTIONS: dict[str, Any] = {"segment_ids": (5000, 5003), "subnets": "10.40.0.0/22"}
_fork = multiprocessing.get_context("fork")


@pytest.fixture
def store(database_url: str) -> DatabaseAddressStore:
    metadata.create_all(engine_for(database_url))
    return DatabaseAddressStore(database_url, rest=REST)


def helper_of(
    store: DatabaseAddressStore, backend_name: str = "backend", **options: Any
) -> SegmentedNetworkHelper:
    backend = BackendContext(backend_name, DriverMode.MANAGED_MULTI_SVM, Path("/nonexistent"))
    return SegmentedNetworkHelper(
        backend, SegmentedNetworkOptions.model_validate({**OPTIONS, **options}), store
    )


def managed(cidr: str | None = None) -> ShareNetwork:
    return ShareNetwork(str(uuid.uuid4()), "project", NetworkKind.MANAGED, cidr=cidr)


def allocate(
    helper: SegmentedNetworkHelper, network: ShareNetwork, count: int = 1
) -> tuple[ShareServer, NetworkInfo]:
    server = a_server(network)
    return server, helper.allocate_network(context(), server, network, count)


class Held:
    """Who holds which address, who is on which segment, and which segments are in use."""

    def __init__(self, url: str) -> None:
        self._url = url

    def state(self) -> Any:
        in_use = (
            select(addresses.c.domain, addresses.c.address, addresses.c.share_server_id)
            .where(addresses.c.share_server_id.is_not(None))
            .order_by(addresses.c.domain, addresses.c.number),
            select(segments)
            .where(segments.c.rests_until.is_(None))
            .order_by(segments.c.segmentation_id),
            select(segment_holders).order_by(segment_holders.c.share_server_id),
        )
        with reading(engine_for(self._url)) as connection:
            return [[tuple(row) for row in connection.execute(query)] for query in in_use]


class TestSegmentedNetwork(NetworkHelperContract):
    @pytest.fixture
    def helper(self, store: DatabaseAddressStore) -> SegmentedNetworkHelper:
        return helper_of(store)

    @pytest.fixture
    def share_network(self) -> ShareNetwork:
        return managed()

    @pytest.fixture
    def external(self, database_url: str) -> Held:
        return Held(database_url)


class TestNamedSubnet(TestSegmentedNetwork):
    @pytest.fixture
    def helper(self, store: DatabaseAddressStore) -> SegmentedNetworkHelper:
        return helper_of(store, segment_type="vlan", segment_ids=(100, 101), subnets=None)

    @pytest.fixture
    def share_network(self) -> ShareNetwork:
        return managed("2001:db8:7::/120")


class TestSegments:
    def test_the_answer_says_what_to_build(self, store: DatabaseAddressStore) -> None:
        _, info = allocate(helper_of(store), managed(), 2)
        assert info == NetworkInfo(
            cidr="10.40.0.0/24",
            netmask="255.255.255.0",
            prefix_length=24,
            ip_version=4,
            broadcast="10.40.0.255",
            gateway="10.40.0.1",
            addresses=("10.40.0.2", "10.40.0.3"),
            segmentation_type="vxlan",
            segmentation_id=5000,
            mtu=1450,
            attributes={"domain": "vxlan:backend"},
        )

    def test_tenants_with_the_same_subnet_have_different_segments(
        self, store: DatabaseAddressStore
    ) -> None:
        helper = helper_of(store)
        answers = [allocate(helper, managed("10.0.0.0/24"))[1] for _ in range(3)]
        assert {info.addresses for info in answers} == {("10.0.0.2",)}
        assert [info.segmentation_id for info in answers] == [5000, 5001, 5002]

    def test_backends_of_one_underlay_agree_and_others_do_not(
        self, store: DatabaseAddressStore
    ) -> None:
        blue = [helper_of(store, backend, name="blue") for backend in ("a", "b")]
        network, filler = managed(), managed()
        allocate(blue[0], filler)
        one, two = (allocate(helper, network)[1] for helper in blue)
        assert (one.segmentation_id, one.cidr) == (5001, "10.40.1.0/24")
        assert (two.segmentation_id, two.cidr) == (5001, "10.40.1.0/24")
        assert one.addresses != two.addresses
        assert allocate(helper_of(store, "c"), network)[1].segmentation_id == 5000

    def test_a_segment_stays_until_the_last_server_is_gone_and_then_rests(
        self, store: DatabaseAddressStore, database_url: str
    ) -> None:
        helper = helper_of(store, segment_ids=(7, 7), subnets="10.40.0.0/24")
        network, other = managed(), managed()
        servers = [allocate(helper, network)[0] for _ in range(2)]
        helper.deallocate_network(context(), servers[0])
        with pytest.raises(Fatal, match="7 to 7, are in use or rest") as refused:
            allocate(helper, other)
        assert refused.value.code is ErrorCode.NETWORK_FAILED
        helper.deallocate_network(context(), servers[1])
        with pytest.raises(Fatal, match="in use or rest"):
            allocate(helper, other)
        # Its own share network may have it back while it rests.
        server, info = allocate(helper, network)
        assert (info.segmentation_id, info.cidr) == (7, "10.40.0.0/24")
        helper.deallocate_network(context(), server)
        with transaction(engine_for(database_url)) as connection:
            connection.execute(update(segments).values(rests_until=1.0))
        assert allocate(helper, other)[1].segmentation_id == 7
        with pytest.raises(Fatal, match="in use or rest"):
            allocate(helper, network)

    def test_a_subnet_that_changed_while_the_segment_rested(
        self, store: DatabaseAddressStore
    ) -> None:
        helper = helper_of(store)
        network = managed("10.0.0.0/24")
        helper.deallocate_network(context(), allocate(helper, network)[0])
        for cidr, expected in (("10.1.0.0/24", "10.1.0.2"), (None, "10.40.0.2")):
            changed = ShareNetwork(network.id, "project", NetworkKind.MANAGED, cidr=cidr)
            server, info = allocate(helper, changed)
            assert (info.segmentation_id, info.addresses) == (5000, (expected,))
            helper.deallocate_network(context(), server)

    def test_subnets_that_we_choose_never_overlap(self, store: DatabaseAddressStore) -> None:
        first = allocate(helper_of(store), managed())[1]
        finer = allocate(helper_of(store, prefix_length=26), managed())[1]
        coarser = allocate(helper_of(store, prefix_length=23), managed())[1]
        assert [i.cidr for i in (first, finer, coarser)] == [
            "10.40.0.0/24",
            "10.40.1.0/26",
            "10.40.2.0/23",
        ]
        with pytest.raises(Fatal, match=r"all /23 of 10\.40\.0\.0/22 are in use or rest"):
            allocate(helper_of(store, prefix_length=23), managed())
        assert allocate(helper_of(store), managed("10.40.0.0/24"))[1].cidr == "10.40.0.0/24"

    def test_no_subnet_for_a_network_that_names_none(self, store: DatabaseAddressStore) -> None:
        with pytest.raises(Fatal, match="names no cidr and its backend has no subnets"):
            allocate(helper_of(store, subnets=None), managed())

    def test_a_named_subnet_that_cannot_be_used(
        self, store: DatabaseAddressStore, database_url: str
    ) -> None:
        with pytest.raises(Fatal, match="host bits") as refused:
            allocate(helper_of(store), managed("10.0.0.1/24"))
        assert refused.value.field == "cidr"
        assert Held(database_url).state() == [[], [], []]

    def test_routers_and_the_tenants_own_machines_are_left_out(
        self, store: DatabaseAddressStore
    ) -> None:
        helper = helper_of(
            store,
            gateway="none",
            next_hop="last",
            tenant_addresses=9,
            tenant_prefixes=("192.168.0.0/16", "10.0.0.0/24", "2001:db8::/32"),
            mtu=8950,
        )
        info = allocate(helper, managed("10.0.0.0/24"))[1]
        assert (info.gateway, info.addresses, info.mtu) == (None, ("10.0.0.10",), 8950)
        # The subnet itself is on the link, and the other IP version cannot be routed there.
        assert info.routes == (Route("192.168.0.0/16", "10.0.0.254"),)
        with pytest.raises(Fatal) as refused:
            allocate(helper, managed("10.7.0.0/28"), 6)
        assert refused.value.code is ErrorCode.ADDRESSES_EXHAUSTED
        assert len(allocate(helper, managed("10.8.0.0/28"), 4)[1].addresses) == 4

    def test_nobody_joins_a_segment_that_is_being_dismantled(
        self, store: DatabaseAddressStore
    ) -> None:
        source = SegmentSource("outside", (1, 9), "10.0.0.0/8", 24)
        segment = store.segments.take(source, "network", "first", None)
        assert store.segments.held("first") == segment
        assert store.segments.take(source, "network", "second", None) == segment
        assert store.segments.close("second") is None
        store.segments.release("second")
        for _ in range(2):
            assert store.segments.close("first") == segment
        with pytest.raises(NotReady, match="being removed with its last share server"):
            store.segments.take(source, "network", "third", None)
        for _ in range(2):
            store.segments.release("first")
        assert store.segments.held("first") is None
        assert store.segments.close("first") is None
        assert store.segments.take(source, "network", "third", None) == segment

    def test_networks_that_come_at_once_get_different_segments(
        self, store: DatabaseAddressStore
    ) -> None:
        helper = helper_of(store, segment_ids=(1, 40), subnets="10.0.0.0/8")
        networks = [managed() for _ in range(10)]
        answers: Queue[list[Any]] = _fork.Queue()
        children = [
            _fork.Process(target=_allocate_all, args=(helper, networks, answers)) for _ in range(4)
        ]
        for child in children:
            child.start()
        told = [answers.get(timeout=limit()) for _ in children]
        for child in children:
            child.join(limit())
        assert [child.exitcode for child in children] == [0] * 4
        assert all(answer == told[0] for answer in told)
        assert len({number for number, _ in told[0]}) == len({cidr for _, cidr in told[0]}) == 10

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"segment_ids": (0, 5)}, "option segment_ids: 0 to 5 is no range of vxlan"),
            ({"segment_ids": (9, 5)}, "option segment_ids: .* the lower one first"),
            ({"segment_ids": (1, 1 << 24)}, "1 to 16777215"),
            ({"segment_type": "vlan"}, "1 to 4094"),
            ({"subnets": "10.0.0.1/8"}, "option subnets: .* host bits"),
            ({"prefix_length": 20}, "option prefix_length: .* cannot be cut into /20"),
            ({"prefix_length": 32}, "option prefix_length: .* cannot be cut into /32"),
            ({"tenant_addresses": 300}, "option tenant_addresses: No address .* can be given out"),
            ({"tenant_prefixes": ["x"]}, "option tenant_prefixes: .* not a CIDR"),
            (
                {"tenant_prefixes": ["10.9.0.0/16"], "gateway": "none"},
                "neither next_hop nor gateway",
            ),
        ],
    )
    def test_what_cannot_work_is_refused_at_start(
        self, options: dict[str, Any], words: str, tmp_path: Path
    ) -> None:
        unused = DatabaseAddressStore(f"sqlite:///{tmp_path}/unused.db", rest=REST)
        with pytest.raises(ConfigurationError, match=words):
            helper_of(unused, **options)


def _allocate_all(
    helper: SegmentedNetworkHelper, networks: list[ShareNetwork], answers: Queue[list[Any]]
) -> None:
    answers.put(
        [
            (i.segmentation_id, i.cidr)
            for i in (allocate(helper, network)[1] for network in networks)
        ]
    )
