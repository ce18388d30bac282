"""The contract of a network helper. Inherit :class:`NetworkHelperContract`; provide the fixtures.

``helper``         the helper under test, with nothing allocated
``share_network``  a share network that it serves, with at least 40 addresses
``external``       an :class:`ExternalSystem`: direct access to the network system
"""

from __future__ import annotations

import contextlib
import multiprocessing
import traceback
import uuid
from functools import partial
from multiprocessing.queues import Queue
from typing import Any, ClassVar, Protocol

import pytest
from netaddr import IPAddress, IPNetwork

from worker.errors import ErrorCode, Fatal, LeaseLost, StepError
from worker.helpers.network.base import NetworkHelper
from worker.model import NetworkInfo, OwnerKind, ServerStatus, ShareNetwork, ShareServer
from worker.plugin import Audit
from worker.testing.calls import GuardThatEnds, context, interrupted_everywhere, patiently
from worker.testing.errors import DocumentedErrors

MORE_THAN_ANYBODY_HAS = 70_000
ANSWER_SECONDS = 60
# Celery's prefork pool forks; a helper must not share connections with a child process.
_fork = multiprocessing.get_context("fork")


class ExternalSystem(Protocol):
    """Direct access of the suite to the network system, not through the helper."""

    def state(self) -> Any:
        """Return all allocations of share servers, as a value that is equal when unchanged."""


def a_server(share_network: ShareNetwork) -> ShareServer:
    """Return a new share server to be built."""
    return ShareServer(
        str(uuid.uuid4()), "project", "backend", share_network.id, ServerStatus.BUILDING
    )


class NetworkHelperContract(DocumentedErrors):
    """Tests of the contract of :class:`worker.helpers.network.base.NetworkHelper`."""

    foreign_codes: ClassVar[frozenset[ErrorCode]] = frozenset(
        {ErrorCode.STORAGE_FAILED, ErrorCode.COMPUTE_FAILED}
    )

    def test_allocating_again_gives_the_same(
        self, helper: NetworkHelper, external: ExternalSystem, share_network: ShareNetwork
    ) -> None:
        empty = external.state()
        server = a_server(share_network)
        info = helper.allocate_network(context(), server, share_network, 2)
        once = external.state()
        assert once != empty
        assert helper.allocate_network(context(), server, share_network, 2) == info
        assert external.state() == once
        helper.deallocate_network(context(), server)
        assert external.state() == empty

    def test_deallocating_what_is_gone_or_never_was_is_fine(
        self, helper: NetworkHelper, external: ExternalSystem, share_network: ShareNetwork
    ) -> None:
        empty = external.state()
        server = a_server(share_network)
        helper.deallocate_network(context(), server)
        helper.allocate_network(context(), server, share_network, 1)
        for _ in range(2):
            helper.deallocate_network(context(), server)
        assert external.state() == empty

    @pytest.mark.parametrize("amount", [1, 2, 5])
    def test_the_amount_is_honoured_from_one_subnet(
        self, helper: NetworkHelper, share_network: ShareNetwork, amount: int
    ) -> None:
        server = a_server(share_network)
        info = helper.allocate_network(context(), server, share_network, amount)
        assert len(set(info.addresses)) == len(info.addresses) == amount
        assert len(info.ports) in {0, amount}
        assert len(info.mac_addresses) in {0, amount}
        self.check_subnet(info)
        helper.deallocate_network(context(), server)

    @staticmethod
    def check_subnet(info: NetworkInfo) -> None:
        subnet = IPNetwork(info.cidr)
        assert (info.ip_version, info.prefix_length) == (subnet.version, subnet.prefixlen)
        assert info.netmask == str(subnet.netmask)
        if subnet.version == 4 and subnet.prefixlen < 31:
            assert info.broadcast == str(subnet.broadcast)
        else:
            assert info.broadcast is None
        for address in info.addresses:
            assert IPAddress(address) in subnet
            assert address not in {info.gateway, info.broadcast}
        assert info.gateway is None or IPAddress(info.gateway) in subnet

    def test_a_failure_leaves_nothing(
        self, helper: NetworkHelper, external: ExternalSystem, share_network: ShareNetwork
    ) -> None:
        empty = external.state()
        server = a_server(share_network)
        with pytest.raises(StepError) as failure:
            helper.allocate_network(context(), server, share_network, MORE_THAN_ANYBODY_HAS)
        assert isinstance(failure.value, Fatal)
        assert failure.value.code is ErrorCode.ADDRESSES_EXHAUSTED
        assert server.id in failure.value.message
        helper.deallocate_network(context(), server)
        assert external.state() == empty

    def test_what_a_dead_attempt_made_is_found(
        self, helper: NetworkHelper, external: ExternalSystem, share_network: ShareNetwork
    ) -> None:
        empty = external.state()
        server = a_server(share_network)
        child = _fork.Process(
            target=helper.allocate_network, args=(context(), server, share_network, 2)
        )
        child.start()
        child.join(ANSWER_SECONDS)
        assert child.exitcode == 0
        made = external.state()
        assert made != empty
        info = helper.allocate_network(context(), server, share_network, 2)
        assert len(info.addresses) == 2
        assert external.state() == made
        helper.deallocate_network(context(), server)
        assert external.state() == empty

    def test_a_call_cut_off_anywhere_is_repaired_by_the_next(
        self, helper: NetworkHelper, external: ExternalSystem, share_network: ShareNetwork
    ) -> None:
        empty = external.state()
        server = a_server(share_network)
        info = interrupted_everywhere(
            lambda c: helper.allocate_network(c, server, share_network, 3)
        )
        assert helper.allocate_network(context(), server, share_network, 3) == info
        interrupted_everywhere(lambda c: helper.deallocate_network(c, server))
        assert external.state() == empty

    @pytest.mark.parametrize("allowed", range(6))
    def test_a_deallocate_clears_an_allocate_that_was_cut_off(
        self,
        helper: NetworkHelper,
        external: ExternalSystem,
        share_network: ShareNetwork,
        allowed: int,
    ) -> None:
        empty = external.state()
        server = a_server(share_network)
        with contextlib.suppress(LeaseLost):
            helper.allocate_network(context(GuardThatEnds(allowed)), server, share_network, 3)
        helper.deallocate_network(context(), server)
        assert external.state() == empty

    def test_nothing_changes_once_the_lease_is_lost(
        self, helper: NetworkHelper, external: ExternalSystem, share_network: ShareNetwork
    ) -> None:
        server = a_server(share_network)
        empty = external.state()
        with pytest.raises(LeaseLost):
            helper.allocate_network(context(GuardThatEnds(0)), server, share_network, 1)
        assert external.state() == empty
        helper.allocate_network(context(), server, share_network, 1)
        made = external.state()
        with pytest.raises(LeaseLost):
            helper.deallocate_network(context(GuardThatEnds(0)), server)
        assert external.state() == made
        helper.deallocate_network(context(), server)

    def test_concurrent_callers_never_share_an_address(
        self, helper: NetworkHelper, external: ExternalSystem, share_network: ShareNetwork
    ) -> None:
        empty = external.state()
        servers = [[a_server(share_network) for _ in range(5)] for _ in range(4)]
        answers: Queue[list[str] | str] = _fork.Queue()
        children = [
            _fork.Process(target=_allocate_all, args=(helper, mine, share_network, answers))
            for mine in servers
        ]
        for child in children:
            child.start()
        taken: list[str] = []
        for _ in children:
            answer = answers.get(timeout=ANSWER_SECONDS)
            assert isinstance(answer, list), answer
            taken += answer
        for child in children:
            child.join(ANSWER_SECONDS)
        assert len(taken) == len(set(taken)) == 40
        for server in (server for mine in servers for server in mine):
            helper.deallocate_network(context(), server)
        assert external.state() == empty

    def test_servers_of_one_network_do_not_touch_each_other(
        self, helper: NetworkHelper, external: ExternalSystem, share_network: ShareNetwork
    ) -> None:
        first, second = a_server(share_network), a_server(share_network)
        one = helper.allocate_network(context(), first, share_network, 2)
        alone = external.state()
        two = helper.allocate_network(context(), second, share_network, 2)
        assert one.cidr == two.cidr
        assert set(one.addresses).isdisjoint(two.addresses)
        helper.deallocate_network(context(), second)
        assert external.state() == alone
        assert helper.allocate_network(context(), first, share_network, 2) == one
        helper.deallocate_network(context(), first)

    def test_what_a_server_has_is_listed_and_an_orphan_goes(
        self, helper: NetworkHelper, external: ExternalSystem, share_network: ShareNetwork
    ) -> None:
        if not isinstance(helper, Audit):
            pytest.skip("the helper lacks the capability Audit")
        empty = external.state()
        stays, goes = a_server(share_network), a_server(share_network)
        info = helper.allocate_network(context(), stays, share_network, 2)
        alone = external.state()
        helper.allocate_network(context(), goes, share_network, 2)
        both = external.state()
        things = list(helper.owned(context()))
        assert len({(one.kind, one.id) for one in things}) == len(things)
        assert external.state() == both, "listing changes nothing"
        orphans = [one for one in things if one.owner_id == goes.id]
        assert orphans
        assert {one.owner_kind for one in orphans} == {OwnerKind.SHARE_SERVER}
        assert [one for one in things if one.owner_id == stays.id]
        with pytest.raises(LeaseLost):
            helper.remove_orphan(context(GuardThatEnds(0)), orphans[0])
        assert external.state() == both
        for orphan in orphans:
            interrupted_everywhere(partial(helper.remove_orphan, owned=orphan))
            helper.remove_orphan(context(), orphan)
        assert external.state() == alone
        assert goes.id not in {one.owner_id for one in helper.owned(context())}
        assert helper.allocate_network(context(), stays, share_network, 2) == info
        helper.deallocate_network(context(), stays)
        assert external.state() == empty


def _allocate_all(
    helper: NetworkHelper,
    servers: list[ShareServer],
    share_network: ShareNetwork,
    answers: Queue[list[str] | str],
) -> None:
    """Allocate in a child process; report the addresses, or the traceback of an error."""
    try:
        answers.put(
            [
                address
                for server in servers
                for address in patiently(
                    partial(helper.allocate_network, context(), server, share_network, 2)
                ).addresses
            ]
        )
    except BaseException:
        answers.put(traceback.format_exc())
        raise
