"""The contract on nova-network (a simulator over HTTP), and what is particular to it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from tests.contract.test_segmented_network import Held
from tests.simulators.nova_network import PASSWORD, PROJECT, USER, NovaSimulator
from tests.support.pace import limit
from worker.db.core.engine import engine_for, transaction
from worker.db.networks.addresses import DatabaseAddressStore
from worker.db.tables.all import metadata
from worker.db.tables.networks import segments
from worker.errors import ConfigurationError, ErrorCode, Fatal, LeaseLost, Retryable
from worker.helpers.network.nova_network import NovaNetworkHelper, NovaNetworkOptions
from worker.model import DriverMode, NetworkInfo, NetworkKind, ShareNetwork, ShareServer
from worker.plugin import BackendContext
from worker.testing.calls import GuardThatEnds, context
from worker.testing.network_helper import NetworkHelperContract, a_server

REST = 3600.0
SUBNET = "10.60.0.0/25"


@pytest.fixture
def store(sqlite_url: str) -> DatabaseAddressStore:
    metadata.create_all(engine_for(sqlite_url))
    return DatabaseAddressStore(sqlite_url, rest=REST)


@pytest.fixture
def nova() -> Iterator[NovaSimulator]:
    with NovaSimulator().served() as simulator:
        yield simulator


@pytest.fixture
def named(nova: NovaSimulator) -> ShareNetwork:
    """A share network of kind ``nova``."""
    network = nova.add_network({"label": "tenant", "cidr": SUBNET, "vlan": 77})
    return ShareNetwork(
        str(uuid.uuid4()), "project", NetworkKind.NOVA, nova_network_id=network["id"]
    )


def managed(cidr: str | None = None) -> ShareNetwork:
    return ShareNetwork(str(uuid.uuid4()), "project", NetworkKind.MANAGED, cidr=cidr)


def helper_of(
    nova: NovaSimulator, store: DatabaseAddressStore, **options: Any
) -> NovaNetworkHelper:
    given = {
        "auth_url": f"{nova.url}/v3",
        "username": USER,
        "password": PASSWORD,
        "project_name": PROJECT,
        "timeout": 10,
        "vlan_ids": (200, 209),
        "subnets": "10.61.0.0/16",
        "prefix_length": 25,
    }
    backend = BackendContext("backend", DriverMode.MANAGED_MULTI_SVM, Path("/nonexistent"))
    return NovaNetworkHelper(
        backend, NovaNetworkOptions.model_validate({**given, **options}), store
    )


def allocate(
    helper: NovaNetworkHelper, network: ShareNetwork, count: int = 1
) -> tuple[ShareServer, NetworkInfo]:
    server = a_server(network)
    return server, helper.allocate_network(context(), server, network, count)


class ExternalSystem:
    """Our rows, and what Nova has: networks and reservations."""

    def __init__(self, nova: NovaSimulator, url: str) -> None:
        self._nova = nova
        self._rows = Held(url)

    def state(self) -> Any:
        return self._rows.state(), sorted(self._nova.networks), self._nova.reserved()


class TestNamedNetwork(NetworkHelperContract):
    @pytest.fixture
    def helper(self, nova: NovaSimulator, store: DatabaseAddressStore) -> NovaNetworkHelper:
        return helper_of(nova, store)

    @pytest.fixture
    def share_network(self, named: ShareNetwork) -> ShareNetwork:
        return named

    @pytest.fixture
    def external(self, nova: NovaSimulator, sqlite_url: str) -> ExternalSystem:
        return ExternalSystem(nova, sqlite_url)


class TestMadeNetwork(TestNamedNetwork):
    @pytest.fixture
    def share_network(self) -> ShareNetwork:
        return managed()


class TestNovaNetwork:
    @pytest.fixture
    def helper(self, nova: NovaSimulator, store: DatabaseAddressStore) -> NovaNetworkHelper:
        return helper_of(nova, store)

    def test_the_answer_is_the_networks_own(
        self, helper: NovaNetworkHelper, named: ShareNetwork
    ) -> None:
        _, info = allocate(helper, named, 2)
        assert info == NetworkInfo(
            cidr=SUBNET,
            netmask="255.255.255.128",
            prefix_length=25,
            ip_version=4,
            broadcast="10.60.0.127",
            gateway="10.60.0.1",
            addresses=("10.60.0.2", "10.60.0.3"),
            segmentation_type="vlan",
            segmentation_id=77,
            attributes={"nova_network_id": str(named.nova_network_id)},
        )

    def test_what_others_have_is_passed_over_and_left_alone(
        self, nova: NovaSimulator, helper: NovaNetworkHelper, named: ShareNetwork
    ) -> None:
        nova.boot("10.60.0.2")
        nova.set_reserved("10.60.0.3", reserved=True)
        nova.boots_before_reserve.add("10.60.0.5")
        server, info = allocate(helper, named, 2)
        assert info.addresses == ("10.60.0.4", "10.60.0.6")
        # They become free; the answer stays, and so does the operator's reservation.
        nova.addresses["10.60.0.2"].hostname = None
        assert helper.allocate_network(context(), server, named, 2) == info
        helper.deallocate_network(context(), server)
        assert nova.reserved() == ["10.60.0.3"]
        assert nova.addresses["10.60.0.5"].hostname == "vm-10-60-0-5"

    def test_what_was_reserved_by_a_dead_attempt_is_used(
        self, nova: NovaSimulator, helper: NovaNetworkHelper, named: ShareNetwork
    ) -> None:
        server = a_server(named)
        for allowed in range(20):
            try:
                helper.allocate_network(context(GuardThatEnds(allowed)), server, named, 1)
            except LeaseLost:
                continue
            break
        assert nova.reserved() == ["10.60.0.2"]

    def test_a_network_is_made_once_and_deleted_with_the_last_server(
        self, nova: NovaSimulator, helper: NovaNetworkHelper
    ) -> None:
        network = managed("10.62.0.0/24")
        servers = [allocate(helper, network)[0] for _ in range(2)]
        (made,) = nova.networks.values()
        assert (made["label"], made["cidr"], made["vlan"]) == (
            f"sharewright-{network.id}",
            "10.62.0.0/24",
            200,
        )
        made["project_id"] = "somebody"
        helper.deallocate_network(context(), servers[0])
        assert nova.networks
        helper.deallocate_network(context(), servers[1])
        assert not nova.networks

    def test_other_networks_are_not_touched(
        self, nova: NovaSimulator, helper: NovaNetworkHelper, named: ShareNetwork
    ) -> None:
        allocate(helper, named)
        ours = managed()
        server, info = allocate(helper, ours)
        assert (info.cidr, info.segmentation_id) == ("10.61.0.0/25", 200)
        helper.deallocate_network(context(), server)
        assert set(nova.networks) == {named.nova_network_id}

    def test_addresses_or_a_vlan_that_nova_has_given_to_another_network(
        self, nova: NovaSimulator, helper: NovaNetworkHelper, sqlite_url: str
    ) -> None:
        nova.add_network({"label": "another", "cidr": "10.61.0.0/24"})
        external = ExternalSystem(nova, sqlite_url)
        before = external.state()
        server, network = a_server(managed()), managed()
        with pytest.raises(Fatal, match=r"could not make a network: .*conflicts") as refused:
            helper.allocate_network(context(), server, network, 1)
        assert refused.value.code is ErrorCode.NETWORK_FAILED
        helper.deallocate_network(context(), server)
        assert external.state() == before

    def test_a_network_that_nova_does_not_have(self, helper: NovaNetworkHelper) -> None:
        network = ShareNetwork("n", "project", NetworkKind.NOVA, nova_network_id="absent")
        with pytest.raises(Fatal, match="There is no nova-network absent"):
            allocate(helper, network)

    def test_no_vlans_to_make_networks_with(
        self, nova: NovaSimulator, store: DatabaseAddressStore
    ) -> None:
        helper = helper_of(nova, store, vlan_ids=None)
        with pytest.raises(Fatal, match="set the network helper's vlan_ids") as refused:
            allocate(helper, managed())
        assert refused.value.code is ErrorCode.CONFIGURATION

    def test_a_freed_vlan_rests(
        self, nova: NovaSimulator, store: DatabaseAddressStore, sqlite_url: str
    ) -> None:
        helper = helper_of(nova, store, vlan_ids=(200, 200))
        server, _ = allocate(helper, managed())
        helper.deallocate_network(context(), server)
        with pytest.raises(Fatal, match="200 to 200, are in use or rest"):
            allocate(helper, managed())
        with transaction(engine_for(sqlite_url)) as connection:
            connection.execute(update(segments).values(rests_until=1.0))
        assert allocate(helper, managed())[1].segmentation_id == 200

    def test_a_nova_without_nova_network_is_told(
        self, nova: NovaSimulator, helper: NovaNetworkHelper, named: ShareNetwork
    ) -> None:
        nova.gone = True
        for network in (named, managed()):
            with pytest.raises(Fatal, match="it has no nova-network any more") as refused:
                allocate(helper, network)
            assert refused.value.code is ErrorCode.CONFIGURATION

    @pytest.mark.parametrize("version", ["2.36", "2.99"])
    def test_a_microversion_without_nova_network_is_told(
        self,
        helper: NovaNetworkHelper,
        named: ShareNetwork,
        monkeypatch: pytest.MonkeyPatch,
        version: str,
    ) -> None:
        monkeypatch.setattr("worker.systems.openstack.nova_network.MICROVERSION", version)
        with pytest.raises(Fatal, match="it has no nova-network any more"):
            allocate(helper, named)

    def test_an_expired_token_is_replaced(
        self, nova: NovaSimulator, helper: NovaNetworkHelper, named: ShareNetwork
    ) -> None:
        allocate(helper, named)
        nova.tokens.clear()
        allocate(helper, named)
        assert nova.logins == 2

    def test_a_busy_nova_is_tried_again(
        self, nova: NovaSimulator, helper: NovaNetworkHelper, named: ShareNetwork
    ) -> None:
        nova.busy = 1
        allocate(helper, named)
        nova.busy = 100
        with pytest.raises(Retryable):
            allocate(helper, named)

    def test_a_wrong_password_is_told_without_it(
        self, nova: NovaSimulator, store: DatabaseAddressStore, named: ShareNetwork
    ) -> None:
        helper = helper_of(nova, store, password="wrong-secret")
        with pytest.raises(Fatal, match="refuses the login") as refused:
            allocate(helper, named)
        assert "wrong-secret" not in str(refused.value)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"vlan_ids": (0, 5)}, "option vlan_ids: 0 to 5 is no range"),
            ({"vlan_ids": (1, 4095)}, "option vlan_ids: .* 1 to 4094"),
            ({"subnets": "2001:db8::/64"}, "option subnets: .* cannot be cut into IPv4"),
            ({"subnets": "10.0.0.0/28"}, "option subnets: .* cannot be cut"),
        ],
    )
    def test_what_cannot_work_is_refused_at_start(
        self, nova: NovaSimulator, store: DatabaseAddressStore, options: dict[str, Any], words: str
    ) -> None:
        with pytest.raises(ConfigurationError, match=words):
            helper_of(nova, store, **options)


class TestSimulator:
    """What was measured of the real one (docs/facts.md)."""

    def ask(self, nova: NovaSimulator, path: str, version: str, body: Any = None) -> int:
        nova.tokens.add("token")
        request = urllib.request.Request(
            f"{nova.url}/v2.1{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"X-Auth-Token": "token", "OpenStack-API-Version": f"compute {version}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=limit()) as response:
                self.answer = json.loads(response.read() or "null")
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code

    def test_its_statuses(self, nova: NovaSimulator, named: ShareNetwork) -> None:
        network = f"/os-networks/{named.nova_network_id}"
        address = "/os-fixed-ips/10.60.0.9"
        assert self.ask(nova, "/os-networks", "2.35") == 200
        assert self.ask(nova, network, "2.35") == 200
        for version, status in (("2.36", 404), ("2.99", 406)):
            assert self.ask(nova, network, version) == status
            assert self.ask(nova, address, version) == status
        assert self.ask(nova, "/os-fixed-ips/192.0.2.1", "2.35") == 404
        assert self.ask(nova, address, "2.3") == 200
        assert "reserved" not in self.answer["fixed_ip"]
        nova.boot("10.60.0.9")
        for _ in range(2):
            assert self.ask(nova, f"{address}/action", "2.35", {"reserve": None}) == 202
        assert self.ask(nova, address, "2.4") == 200
        assert self.answer["fixed_ip"]["reserved"]
        assert self.answer["fixed_ip"]["host"]
        assert self.ask(nova, f"{address}/action", "2.35", {"reserve": True}) == 400
        assert self.ask(nova, f"{network}/action", "2.35", {"disassociate": None}) == 202
