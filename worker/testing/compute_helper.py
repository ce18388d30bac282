"""The contract of a compute helper. Inherit :class:`ComputeHelperContract`; provide the fixtures.

``helper``       the helper under test, with no server
``external``     an :class:`ExternalSystem`: direct access to the compute system
``network_for``  returns the NetworkInfo of the n-th server (different addresses)
``failing``      a helper, and a server of which the build fails permanently half-way
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Protocol

import pytest

from worker.errors import ErrorCode, LeaseLost, StepError
from worker.helpers.compute.base import ComputeHelper, Reachable, Watched
from worker.model import (
    NetworkInfo,
    NetworkKind,
    Outage,
    OwnerKind,
    RequestContext,
    ServerStatus,
    ShareNetwork,
    ShareServer,
    ShareServerDetails,
)
from worker.plugin import Audit
from worker.testing.calls import GuardThatEnds, context, interrupted_everywhere, patiently
from worker.testing.errors import DocumentedErrors

NetworkFor = Callable[[int], NetworkInfo]


class ExternalSystem(Protocol):
    """Direct access of the suite to the compute system, not through the helper."""

    def state(self) -> Any:
        """Return everything that the helper created, as a value that is equal when unchanged."""


def a_server(network_info: NetworkInfo, share_network: ShareNetwork) -> ShareServer:
    """Return a new share server to be built."""
    return ShareServer(
        str(uuid.uuid4()),
        "project",
        "backend",
        share_network.id,
        ServerStatus.BUILDING,
        network_info=network_info,
    )


class ComputeHelperContract(DocumentedErrors):
    """Tests of the contract of :class:`worker.helpers.compute.base.ComputeHelper`."""

    foreign_codes: ClassVar[frozenset[ErrorCode]] = frozenset({ErrorCode.STORAGE_FAILED})

    @pytest.fixture
    def share_network(self) -> ShareNetwork:
        return ShareNetwork(str(uuid.uuid4()), "project", NetworkKind.FLAT_POOL)

    @pytest.fixture
    def new_server(
        self, network_for: NetworkFor, share_network: ShareNetwork
    ) -> Callable[[int], ShareServer]:
        return lambda number: a_server(network_for(number), share_network)

    @staticmethod
    def get(
        helper: ComputeHelper,
        server: ShareServer,
        network: ShareNetwork,
        given: RequestContext | None = None,
    ) -> ShareServerDetails:
        """Create the server, as the engine does; return its details."""
        info = server.network_info
        assert info is not None
        asking = given or context()
        return patiently(lambda: helper.get_share_server(asking, server, network, info, ()))

    @staticmethod
    def delete(
        helper: ComputeHelper, server: ShareServer, given: RequestContext | None = None
    ) -> None:
        """Delete the server, as the engine does."""
        asking = given or context()
        patiently(lambda: helper.delete_share_server(asking, server))

    def test_asked_twice_it_is_one_server(
        self,
        helper: ComputeHelper,
        external: ExternalSystem,
        new_server: Any,
        share_network: ShareNetwork,
    ) -> None:
        empty = external.state()
        server = new_server(0)
        details = self.get(helper, server, share_network)
        once = external.state()
        assert once != empty
        assert details.addresses == server.network_info.addresses
        assert self.get(helper, server, share_network) == details
        assert external.state() == once
        self.delete(helper, dataclasses.replace(server, details=details))
        assert external.state() == empty

    def test_deleting_what_is_gone_or_never_was_is_fine(
        self,
        helper: ComputeHelper,
        external: ExternalSystem,
        new_server: Any,
        share_network: ShareNetwork,
    ) -> None:
        empty = external.state()
        server = new_server(0)
        self.delete(helper, server)
        self.get(helper, server, share_network)
        for _ in range(2):
            self.delete(helper, server)
        assert external.state() == empty

    def test_nothing_changes_once_the_lease_is_lost(
        self,
        helper: ComputeHelper,
        external: ExternalSystem,
        new_server: Any,
        share_network: ShareNetwork,
    ) -> None:
        server = new_server(0)
        empty = external.state()
        with pytest.raises(LeaseLost):
            self.get(helper, server, share_network, context(GuardThatEnds(0)))
        assert external.state() == empty
        self.get(helper, server, share_network)
        made = external.state()
        with pytest.raises(LeaseLost):
            self.delete(helper, server, context(GuardThatEnds(0)))
        assert external.state() == made
        self.delete(helper, server)

    def test_a_call_cut_off_anywhere_is_repaired_by_the_next(
        self,
        helper: ComputeHelper,
        external: ExternalSystem,
        new_server: Any,
        share_network: ShareNetwork,
    ) -> None:
        empty = external.state()
        server = new_server(0)
        details = interrupted_everywhere(lambda c: self.get(helper, server, share_network, c))
        assert self.get(helper, server, share_network) == details
        interrupted_everywhere(lambda c: self.delete(helper, server, c))
        assert external.state() == empty

    def test_a_delete_clears_a_build_that_was_cut_off(
        self,
        helper: ComputeHelper,
        external: ExternalSystem,
        new_server: Any,
        share_network: ShareNetwork,
    ) -> None:
        empty = external.state()
        for allowed in range(8):
            server, cut = new_server(allowed), False
            try:
                self.get(helper, server, share_network, context(GuardThatEnds(allowed)))
            except LeaseLost:
                cut = True
            self.delete(helper, server)
            assert external.state() == empty
            if not cut:
                break

    def test_a_failure_names_what_exists(
        self,
        failing: tuple[ComputeHelper, ShareServer],
        external: ExternalSystem,
        share_network: ShareNetwork,
    ) -> None:
        helper, server = failing
        empty = external.state()
        with pytest.raises(StepError) as failure:
            self.get(helper, server, share_network)
        assert failure.value.share_server_id
        assert external.state() != empty
        self.delete(helper, dataclasses.replace(server, server_id=failure.value.share_server_id))
        assert external.state() == empty

    def test_two_servers_of_one_network_do_not_touch_each_other(
        self,
        helper: ComputeHelper,
        external: ExternalSystem,
        new_server: Any,
        share_network: ShareNetwork,
    ) -> None:
        first, second = new_server(0), new_server(1)
        one = self.get(helper, first, share_network)
        alone = external.state()
        two = self.get(helper, second, share_network)
        assert one.server_id != two.server_id
        self.delete(helper, second)
        assert external.state() == alone
        assert self.get(helper, first, share_network) == one
        self.delete(helper, first)

    def test_what_it_made_is_listed_and_an_orphan_goes(
        self,
        helper: ComputeHelper,
        external: ExternalSystem,
        new_server: Any,
        share_network: ShareNetwork,
    ) -> None:
        if not isinstance(helper, Audit):
            pytest.skip("the helper lacks the capability Audit")
        stays, goes = new_server(0), new_server(1)
        details = self.get(helper, stays, share_network)
        alone = external.state()
        self.get(helper, goes, share_network)
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
            patiently(partial(helper.remove_orphan, context(), orphan))
        assert external.state() == alone
        assert goes.id not in {one.owner_id for one in helper.owned(context())}
        assert self.get(helper, stays, share_network) == details
        self.delete(helper, stays)

    def test_a_reachable_server_takes_commands(
        self, helper: ComputeHelper, new_server: Any, share_network: ShareNetwork
    ) -> None:
        if not isinstance(helper, Reachable):
            pytest.skip("the helper's servers take no commands")
        server = new_server(0)
        server = dataclasses.replace(server, details=self.get(helper, server, share_network))
        assert helper.shell(server).run(["sh", "-c", "exit 3"], check=False).exit_code == 3
        self.delete(helper, server)

    def test_a_watched_server_is_missed_where_it_should_be(
        self, helper: ComputeHelper, new_server: Any, share_network: ShareNetwork
    ) -> None:
        if not isinstance(helper, Watched):
            pytest.skip("nobody can tell whether the helper's servers serve")
        first, second = new_server(0), new_server(1)
        self.get(helper, first, share_network)
        assert helper.outages([first]) == {}
        assert helper.outages([first, second]) == {second.id: Outage.SERVER}
        self.get(helper, second, share_network)
        assert helper.outages([first, second]) == {}
        self.delete(helper, first)
        assert helper.outages([first, second]) == {first.id: Outage.SERVER}
        self.delete(helper, second)
