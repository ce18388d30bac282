"""The contract on the flat network helper with a real dnsmasq, and what a DHCP server may do."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from tests.support.dnsmasq import ENDPOINT, RELAY, Dnsmasq
from worker.db.core.engine import engine_for, reading
from worker.db.networks.addresses import DatabaseAddressStore
from worker.db.tables.all import metadata
from worker.db.tables.networks import dhcp_leases
from worker.errors import ErrorCode, Fatal, Retryable, StepError
from worker.helpers.network.flat_network.dhcp import RELEASE_ATTEMPTS
from worker.helpers.network.flat_network.helper import FlatNetworkHelper, FlatNetworkOptions
from worker.model import DriverMode, NetworkKind, Route, ShareNetwork
from worker.plugin import BackendContext
from worker.systems.network.dhcp import _udp_socket
from worker.systems.network.dhcp_messages import client_of
from worker.testing.calls import context
from worker.testing.network_helper import NetworkHelperContract, a_server

DEADLINE = 1.5


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dnsmasq]:
    with Dnsmasq(tmp_path_factory.mktemp("dnsmasq"), f"swdh{os.getpid()}") as made:
        yield made


@pytest.fixture
def dnsmasq(lab: Dnsmasq) -> Dnsmasq:
    return lab.start()


def helper_of(url: str, lab: Dnsmasq, **options: Any) -> FlatNetworkHelper:
    metadata.create_all(engine_for(url))
    given = {"dhcp_relay_address": RELAY, "dhcp_namespace": lab.relay_namespace}
    return FlatNetworkHelper(
        BackendContext("backend", DriverMode.FLAT_MULTI_SVM, Path("/nonexistent"), True),
        FlatNetworkOptions.model_validate({**given, "dhcp_deadline": DEADLINE, **options}),
        DatabaseAddressStore(url, rest=3600),
    )


def a_network(endpoint: str = ENDPOINT) -> ShareNetwork:
    return ShareNetwork(str(uuid.uuid4()), "project", NetworkKind.DHCP, dhcp_endpoint=endpoint)


class Both:
    """What the DHCP server holds, and what we say that it does."""

    def __init__(self, url: str, lab: Dnsmasq) -> None:
        self._url = url
        self._lab = lab

    def rows(self) -> list[Any]:
        with reading(engine_for(self._url)) as connection:
            return list(
                connection.execute(
                    select(
                        dhcp_leases.c.address,
                        dhcp_leases.c.mac,
                        dhcp_leases.c.share_server_id,
                        dhcp_leases.c.ordinal,
                    ).order_by(dhcp_leases.c.address)
                )
            )

    def state(self) -> Any:
        return [tuple(row) for row in self.rows()], sorted(self._lab.leases().items())


class TestContract(NetworkHelperContract):
    @pytest.fixture
    def helper(self, database_url: str, dnsmasq: Dnsmasq) -> FlatNetworkHelper:
        return helper_of(database_url, dnsmasq)

    @pytest.fixture
    def share_network(self) -> ShareNetwork:
        return a_network()

    @pytest.fixture
    def external(self, database_url: str, dnsmasq: Dnsmasq) -> Both:
        return Both(database_url, dnsmasq)


@pytest.fixture
def helper(sqlite_url: str, dnsmasq: Dnsmasq) -> FlatNetworkHelper:
    return helper_of(sqlite_url, dnsmasq)


@pytest.fixture
def rows(sqlite_url: str, dnsmasq: Dnsmasq) -> Callable[[], list[Any]]:
    return Both(sqlite_url, dnsmasq).rows


NETWORK = a_network()


def refusal(action: Callable[[], Any]) -> StepError:
    with pytest.raises(StepError) as refused:
        action()
    return refused.value


class TestAnswers:
    def test_all_that_the_server_says_is_passed_on(
        self, helper: FlatNetworkHelper, dnsmasq: Dnsmasq
    ) -> None:
        dnsmasq.start(
            *(100, 149, "--no-ping", "--dhcp-option=option:mtu,1400"),
            "--dhcp-option=option:router,10.77.0.9",
            "--dhcp-option=121,0.0.0.0/0,10.77.0.1,172.16.0.0/12,10.77.0.254",
        )
        server = a_server(NETWORK)
        info = helper.allocate_network(context(), server, NETWORK, 2)
        assert (info.cidr, info.netmask, info.broadcast) == (
            "10.77.0.0/24",
            "255.255.255.0",
            "10.77.0.255",
        )
        assert (info.gateway, info.mtu) == ("10.77.0.1", 1400)
        assert info.routes == (Route("172.16.0.0/12", "10.77.0.254"),)
        assert info.attributes["domain"] == "dhcp:10.66.0.1:67"
        assert info.mac_addresses == tuple(client_of(server.id, n).mac for n in (0, 1))
        held = dnsmasq.leases()
        assert [held[address] for address in info.addresses] == list(info.mac_addresses)

    def test_a_server_that_looks_first_whether_an_address_is_in_use(
        self, sqlite_url: str, dnsmasq: Dnsmasq
    ) -> None:
        dnsmasq.start(100, 149, "--quiet-ra")  # without no-ping: it listens for 3 s
        helper = helper_of(sqlite_url, dnsmasq, dhcp_deadline=10)
        assert helper.allocate_network(context(), a_server(NETWORK), NETWORK, 1).addresses

    def test_without_a_relay_address_it_is_the_one_on_the_way_to_the_server(
        self, sqlite_url: str, dnsmasq: Dnsmasq
    ) -> None:
        dnsmasq.start(100, 149, "--no-ping", "--dhcp-range=10.66.0.100,10.66.0.110,2m")
        helper = helper_of(sqlite_url, dnsmasq, dhcp_relay_address=None)
        info = helper.allocate_network(context(), a_server(NETWORK), NETWORK, 1)
        assert info.cidr == "10.66.0.0/24"


class TestRefusals:
    def test_exhausted_is_said_within_the_deadline_and_a_release_ends_it(
        self, helper: FlatNetworkHelper, dnsmasq: Dnsmasq
    ) -> None:
        dnsmasq.start(100, 100)
        first, second = a_server(NETWORK), a_server(NETWORK)
        taken = helper.allocate_network(context(), first, NETWORK, 1)
        error = refusal(lambda: helper.allocate_network(context(), second, NETWORK, 1))
        assert isinstance(error, Fatal)
        assert error.code is ErrorCode.ADDRESSES_EXHAUSTED
        assert error.object == f"share_server {second.id}"
        helper.deallocate_network(context(), first)
        again = helper.allocate_network(context(), second, NETWORK, 1)
        assert again.addresses == taken.addresses
        assert again.mac_addresses != taken.mac_addresses

    def test_silence_is_said_within_the_deadline_and_may_be_exhaustion(
        self, helper: FlatNetworkHelper, dnsmasq: Dnsmasq
    ) -> None:
        dnsmasq.process.signal(signal.SIGSTOP)
        error = refusal(lambda: helper.allocate_network(context(), a_server(NETWORK), NETWORK, 1))
        assert isinstance(error, Retryable)
        assert error.code is ErrorCode.BACKEND_UNAVAILABLE
        assert "or has none left" in error.message
        assert "10.66.0.1:67" in error.message

    def test_a_relay_that_the_server_has_no_addresses_for(
        self, sqlite_url: str, dnsmasq: Dnsmasq
    ) -> None:
        helper = helper_of(sqlite_url, dnsmasq, dhcp_relay_address="10.66.0.2")
        error = refusal(lambda: helper.allocate_network(context(), a_server(NETWORK), NETWORK, 1))
        assert isinstance(error, Retryable)
        assert "no addresses for relay 10.66.0.2" in error.message

    def test_nobody_listens_is_said_at_once(self, helper: FlatNetworkHelper) -> None:
        network = a_network(f"{ENDPOINT}:6767")
        error = refusal(lambda: helper.allocate_network(context(), a_server(network), network, 1))
        assert isinstance(error, Retryable)
        assert "Connection refused" in error.message

    def test_another_program_on_the_relays_port(
        self, helper: FlatNetworkHelper, dnsmasq: Dnsmasq
    ) -> None:
        with _udp_socket(dnsmasq.relay_namespace) as other:
            other.bind(("0.0.0.0", 67))
            error = refusal(
                lambda: helper.allocate_network(context(), a_server(NETWORK), NETWORK, 1)
            )
        assert isinstance(error, Retryable)
        assert "stayed in use" in error.message

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"dhcp_relay_address": "10.99.0.1"}, "does not have that address"),
            ({"dhcp_namespace": "swdh-nowhere"}, "no namespace of that name"),
        ],
    )
    def test_what_the_operator_has_to_correct(
        self, sqlite_url: str, dnsmasq: Dnsmasq, options: dict[str, str], sentence: str
    ) -> None:
        helper = helper_of(sqlite_url, dnsmasq, **options)
        error = refusal(lambda: helper.allocate_network(context(), a_server(NETWORK), NETWORK, 1))
        assert isinstance(error, Fatal)
        assert error.code is ErrorCode.CONFIGURATION
        assert sentence in error.message

    def test_an_endpoint_of_ipv6(self, helper: FlatNetworkHelper) -> None:
        network = a_network("[fd00::1]:547")
        with pytest.raises(Fatal, match="IPv6") as refused:
            helper.allocate_network(context(), a_server(network), network, 1)
        assert refused.value.field == "dhcp_endpoint"

    def test_refused_between_offer_and_request(
        self, helper: FlatNetworkHelper, dnsmasq: Dnsmasq, rows: Callable[[], list[Any]]
    ) -> None:
        server = a_server(NETWORK)
        guards = 0

        def restarts_before_the_request() -> None:
            nonlocal guards
            guards += 1
            if guards == 3:  # before the question, before the row, before the request
                dnsmasq.start(200, 210)

        info = helper.allocate_network(
            replace(context(), guard=restarts_before_the_request), server, NETWORK, 1
        )
        assert "NAK" in dnsmasq.log()
        assert info.addresses[0] in {f"10.77.0.{n}" for n in range(200, 211)}
        assert list(dnsmasq.leases()) == [row.address for row in rows()] == list(info.addresses)

    def test_an_address_that_another_share_server_has(
        self, helper: FlatNetworkHelper, dnsmasq: Dnsmasq, rows: Callable[[], list[Any]]
    ) -> None:
        dnsmasq.start(100, 100)
        first, second = a_server(NETWORK), a_server(NETWORK)
        helper.allocate_network(context(), first, NETWORK, 1)
        dnsmasq.start(100, 100)  # it forgot what it gave away
        error = refusal(lambda: helper.allocate_network(context(), second, NETWORK, 1))
        assert isinstance(error, Retryable)
        assert "another share server has that address" in error.message
        assert [row.share_server_id for row in rows()] == [first.id]
        assert dnsmasq.leases() == {}


class TestRenewals:
    def test_a_renewal_is_the_servers_own(
        self, helper: FlatNetworkHelper, dnsmasq: Dnsmasq
    ) -> None:
        server = a_server(NETWORK)
        info = helper.allocate_network(context(), server, NETWORK, 2)
        helper.renew_network(context(), server)
        dnsmasq.leases()
        for address in info.addresses:
            assert dnsmasq.said("ACK", address) == 2
            assert dnsmasq.said("DISCOVER", address) == 0

    def test_a_server_that_forgot_gives_the_same_address_again(
        self, helper: FlatNetworkHelper, dnsmasq: Dnsmasq
    ) -> None:
        server = a_server(NETWORK)
        info = helper.allocate_network(context(), server, NETWORK, 1)
        dnsmasq.start()
        assert dnsmasq.leases() == {}
        helper.renew_network(context(), server)
        assert dnsmasq.said("NAK", info.addresses[0]) == 1
        assert dnsmasq.leases() == {info.addresses[0]: info.mac_addresses[0]}

    def test_a_server_that_has_other_addresses_now(
        self, helper: FlatNetworkHelper, dnsmasq: Dnsmasq, rows: Callable[[], list[Any]]
    ) -> None:
        server = a_server(NETWORK)
        info = helper.allocate_network(context(), server, NETWORK, 1)
        dnsmasq.start(200, 210)
        with pytest.raises(Fatal, match="would give") as lost:
            helper.renew_network(context(), server)
        assert info.addresses[0] in lost.value.message
        assert dnsmasq.leases() == {}
        assert [row.address for row in rows()] == list(info.addresses)


class TestReleases:
    def test_a_server_that_is_away_does_not_keep_share_servers_alive(
        self,
        helper: FlatNetworkHelper,
        dnsmasq: Dnsmasq,
        rows: Callable[[], list[Any]],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        server = a_server(NETWORK)
        info = helper.allocate_network(context(), server, NETWORK, 2)
        dnsmasq.stop()
        for _ in range(RELEASE_ATTEMPTS - 1):
            with pytest.raises(Retryable, match="cannot be reached"):
                helper.deallocate_network(context(), server)
            assert len(rows()) == 2
        helper.deallocate_network(context(), server)
        assert rows() == []
        assert all(address in caplog.text for address in info.addresses)

    def test_one_that_comes_back_in_time_gets_its_leases_back(
        self, helper: FlatNetworkHelper, dnsmasq: Dnsmasq
    ) -> None:
        server = a_server(NETWORK)
        helper.allocate_network(context(), server, NETWORK, 2)
        dnsmasq.stop()
        with pytest.raises(Retryable):
            helper.deallocate_network(context(), server)
        dnsmasq.start(forget=False)
        assert len(dnsmasq.leases()) == 2
        helper.deallocate_network(context(), server)
        assert dnsmasq.leases() == {}
