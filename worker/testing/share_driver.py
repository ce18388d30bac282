"""The contract of a share driver. Inherit :class:`ShareDriverContract`; provide the fixtures.

``driver``    the driver under test, with an empty storage system
``server``    the share server to work on, or None in single_svm
``external``  an :class:`ExternalSystem`: direct access to the storage system
"""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import pytest

from worker.drivers.base import AuditOnServers, Decommission, Ensure, Resize, ShareDriver
from worker.errors import Conflict, Fatal, LeaseLost, StepError
from worker.model import (
    OwnedResource,
    OwnerKind,
    RequestContext,
    Share,
    ShareServer,
    Snapshot,
)
from worker.plugin import Audit
from worker.testing.calls import GuardThatEnds, context, interrupted_everywhere, patiently, rule
from worker.testing.errors import DocumentedErrors


class ExternalSystem(Protocol):
    """Direct access of the suite to the storage system, not through the driver."""

    holds_data: bool
    """Whether ``write`` and ``read`` work on real content; an in-memory driver has none."""

    def state(self) -> Any:
        """Return everything that the driver created, as a value that is equal when unchanged."""

    def rules(self, share: Share) -> set[tuple[str, str]]:
        """Return the enforced (access_to, access_level) pairs; empty if none was ever set."""

    def write(self, share: Share, name: str, text: str) -> None:
        """Write a file into the share, as a client would; only called if ``holds_data``."""

    def read(self, share: Share, name: str) -> str:
        """Read a file of the share, as a client would; only called if ``holds_data``."""

    def reboot(self) -> None:
        """Simulate a reboot of the server's host; only called if the driver can ensure shares."""


class ShareDriverContract(DocumentedErrors):
    """Tests of the contract of :class:`worker.drivers.base.ShareDriver`."""

    @pytest.fixture
    def share(self) -> Share:
        return Share(str(uuid.uuid4()), "project", 1, "NFS", "backend", "pool")

    @pytest.fixture
    def snapshot(self, share: Share) -> Snapshot:
        return Snapshot(str(uuid.uuid4()), share.id, "project", share.size)

    def test_created_twice_is_one_share_and_nobody_has_access(
        self,
        driver: ShareDriver,
        server: ShareServer | None,
        external: ExternalSystem,
        share: Share,
    ) -> None:
        empty = external.state()
        locations = driver.create_share(context(), share, server)
        once = external.state()
        assert once != empty
        assert locations
        assert all(share.id in location.path for location in locations)
        assert sum(location.preferred for location in locations) == 1
        assert driver.create_share(context(), share, server) == locations
        assert external.state() == once
        assert external.rules(share) == set()
        driver.delete_share(context(), share, server)
        assert external.state() == empty

    def test_deleting_what_is_gone_is_fine(
        self, driver: ShareDriver, server: ShareServer | None, share: Share, snapshot: Snapshot
    ) -> None:
        driver.delete_share(context(), share, server)
        driver.delete_snapshot(context(), snapshot, share, server)
        driver.create_share(context(), share, server)
        patiently(lambda: driver.create_snapshot(context(), snapshot, share, server))
        for _ in range(2):
            driver.delete_snapshot(context(), snapshot, share, server)
        for _ in range(2):
            driver.delete_share(context(), share, server)

    def test_nothing_changes_once_the_lease_is_lost(
        self,
        driver: ShareDriver,
        server: ShareServer | None,
        external: ExternalSystem,
        share: Share,
        snapshot: Snapshot,
    ) -> None:
        lost = context(GuardThatEnds(0))
        before = external.state()
        with pytest.raises(LeaseLost):
            driver.create_share(lost, share, server)
        assert external.state() == before
        driver.create_share(context(), share, server)
        before = external.state()
        for call in (
            lambda: driver.delete_share(lost, share, server),
            lambda: driver.create_snapshot(lost, snapshot, share, server),
            lambda: driver.update_access(lost, share, server, [rule("10.1.0.1")], 1),
            lambda: driver.create_share_from_snapshot(
                lost, dataclasses.replace(share, id=snapshot.id), snapshot, server
            ),
        ):
            with pytest.raises(LeaseLost):
                call()
            assert external.state() == before
        assert external.rules(share) == set()
        driver.delete_share(context(), share, server)

    def test_a_call_cut_off_anywhere_is_repaired_by_the_next(
        self,
        driver: ShareDriver,
        server: ShareServer | None,
        external: ExternalSystem,
        share: Share,
        snapshot: Snapshot,
    ) -> None:
        empty = external.state()
        locations = interrupted_everywhere(lambda c: driver.create_share(c, share, server))
        assert driver.create_share(context(), share, server) == locations
        rules = [rule("10.1.0.0/24"), rule("10.1.0.7", "ro")]
        interrupted_everywhere(lambda c: driver.update_access(c, share, server, rules, 1))
        assert external.rules(share) == {("10.1.0.0/24", "rw"), ("10.1.0.7", "ro")}
        interrupted_everywhere(lambda c: driver.create_snapshot(c, snapshot, share, server))
        clone = dataclasses.replace(share, id=str(uuid.uuid4()))
        interrupted_everywhere(
            lambda c: driver.create_share_from_snapshot(c, clone, snapshot, server)
        )
        interrupted_everywhere(lambda c: driver.delete_share(c, clone, server))
        interrupted_everywhere(lambda c: driver.delete_share(c, share, server))
        interrupted_everywhere(lambda c: driver.delete_snapshot(c, snapshot, share, server))
        assert external.state() == empty

    @pytest.mark.parametrize("allowed", range(0, 24, 3))
    def test_a_delete_clears_a_create_that_was_cut_off(
        self,
        driver: ShareDriver,
        server: ShareServer | None,
        external: ExternalSystem,
        share: Share,
        allowed: int,
    ) -> None:
        empty = external.state()
        with contextlib.suppress(LeaseLost):
            driver.create_share(context(GuardThatEnds(allowed)), share, server)
        driver.delete_share(context(), share, server)
        assert external.state() == empty

    def test_rules_are_replaced_and_an_older_generation_is_ignored(
        self,
        driver: ShareDriver,
        server: ShareServer | None,
        external: ExternalSystem,
        share: Share,
    ) -> None:
        driver.create_share(context(), share, server)
        driver.update_access(context(), share, server, [rule("10.1.0.1"), rule("10.1.0.2")], 2)
        assert external.rules(share) == {("10.1.0.1", "rw"), ("10.1.0.2", "rw")}
        driver.update_access(context(), share, server, [rule("10.1.0.3")], 5)
        driver.update_access(context(), share, server, [rule("10.1.0.4")], 4)
        assert external.rules(share) == {("10.1.0.3", "rw")}
        driver.create_share(context(), share, server)
        driver.update_access(context(), share, server, [rule("10.1.0.5")], 4)
        assert external.rules(share) == {("10.1.0.3", "rw")}
        driver.update_access(context(), share, server, [], 6)
        assert external.rules(share) == set()
        driver.delete_share(context(), share, server)

    def test_a_share_from_a_snapshot_has_its_content_and_its_own_life(
        self,
        driver: ShareDriver,
        server: ShareServer | None,
        external: ExternalSystem,
        share: Share,
        snapshot: Snapshot,
    ) -> None:
        empty = external.state()
        driver.create_share(context(), share, server)
        if external.holds_data:
            external.write(share, "file", "old")
        for _ in range(2):
            patiently(lambda: driver.create_snapshot(context(), snapshot, share, server))
        if external.holds_data:
            external.write(share, "file", "new")
            patiently(lambda: driver.create_snapshot(context(), snapshot, share, server))
        clone = dataclasses.replace(share, id=str(uuid.uuid4()), size=2)
        locations = patiently(
            lambda: driver.create_share_from_snapshot(context(), clone, snapshot, server)
        )
        again = patiently(
            lambda: driver.create_share_from_snapshot(context(), clone, snapshot, server)
        )
        assert locations == again
        assert all(clone.id in location.path for location in locations)
        assert external.rules(clone) == set()
        if isinstance(driver, Resize):
            assert driver.share_size(context(), clone, server) == 2
        driver.delete_share(context(), share, server)
        driver.delete_snapshot(context(), snapshot, share, server)
        if external.holds_data:
            assert external.read(clone, "file") == "old"
        driver.delete_share(context(), clone, server)
        assert external.state() == empty

    def test_extended_twice_and_read_back(
        self, driver: ShareDriver, server: ShareServer | None, share: Share
    ) -> None:
        if not isinstance(driver, Resize):
            pytest.skip("the driver lacks the capability Resize")
        driver.create_share(context(), share, server)
        assert driver.share_size(context(), share, server) == 1
        interrupted_everywhere(lambda c: driver.extend_share(c, share, 3, server))
        driver.extend_share(context(), share, 3, server)
        assert driver.share_size(context(), share, server) == 3
        with pytest.raises(StepError):
            driver.extend_share(context(), share, 2, server)
        assert driver.share_size(context(), share, server) == 3
        driver.delete_share(context(), share, server)

    def test_what_a_reboot_takes_is_served_again(
        self,
        driver: ShareDriver,
        server: ShareServer | None,
        external: ExternalSystem,
        share: Share,
    ) -> None:
        if not isinstance(driver, Ensure):
            pytest.skip("the driver lacks the capability Ensure")
        empty = external.state()
        locations = driver.create_share(context(), share, server)
        rules = [rule("10.1.0.9")]
        driver.update_access(context(), share, server, rules, 4)
        if external.holds_data:
            external.write(share, "file", "kept")
        served = external.state()
        external.reboot()
        assert external.state() != served
        if server is None:
            assert not driver.serves(context())
        for _ in range(2):
            again = interrupted_everywhere(lambda c: driver.ensure_share(c, share, server))
            assert again == locations
            driver.update_access(context(), share, server, rules, 4)
            assert external.state() == served
            assert external.rules(share) == {("10.1.0.9", "rw")}
            assert server is not None or driver.serves(context())
            if external.holds_data:
                assert external.read(share, "file") == "kept"
        driver.delete_share(context(), share, server)
        assert external.state() == empty

    def test_what_is_not_there_is_not_made_by_ensuring_it(
        self,
        driver: ShareDriver,
        server: ShareServer | None,
        external: ExternalSystem,
        share: Share,
    ) -> None:
        if not isinstance(driver, Ensure):
            pytest.skip("the driver lacks the capability Ensure")
        empty = external.state()
        with pytest.raises(Fatal, match=share.id):
            driver.ensure_share(context(), share, server)
        assert external.state() == empty

    def test_two_shares_do_not_touch_each_other(
        self,
        driver: ShareDriver,
        server: ShareServer | None,
        external: ExternalSystem,
        share: Share,
    ) -> None:
        other = dataclasses.replace(share, id=str(uuid.uuid4()))
        first = driver.create_share(context(), share, server)
        second = driver.create_share(context(), other, server)
        assert {one.path for one in first}.isdisjoint(one.path for one in second)
        driver.update_access(context(), share, server, [rule("10.1.0.1")], 1)
        assert external.rules(other) == set()
        driver.delete_share(context(), other, server)
        assert external.rules(share) == {("10.1.0.1", "rw")}
        driver.delete_share(context(), share, server)

    def test_pools_say_what_is_there(self, driver: ShareDriver) -> None:
        pools = driver.storage_pools(context())
        assert pools
        assert len({pool.name for pool in pools}) == len(pools)
        assert all(0 <= pool.free_gib <= pool.total_gib for pool in pools)

    def test_what_it_made_is_listed_and_orphans_go(
        self,
        driver: ShareDriver,
        server: ShareServer | None,
        external: ExternalSystem,
        share: Share,
        snapshot: Snapshot,
    ) -> None:
        if not isinstance(driver, Audit):
            pytest.skip("the driver lacks the capability Audit")
        empty = external.state()
        stays = dataclasses.replace(share, id=str(uuid.uuid4()))
        driver.create_share(context(), stays, server)
        alone = external.state()
        driver.create_share(context(), share, server)
        patiently(lambda: driver.create_snapshot(context(), snapshot, share, server))
        everything = external.state()
        listed = _owned(driver, server)
        of_driver = list(driver.owned(context()))
        assert len({(one.kind, one.id) for one in of_driver}) == len(of_driver)
        assert external.state() == everything, "listing changes nothing"
        assert {(one.owner_kind, one.owner_id) for _, one in listed} == {
            (OwnerKind.SHARE, stays.id),
            (OwnerKind.SHARE, share.id),
            (OwnerKind.SNAPSHOT, snapshot.id),
        }
        orphans = [(remove, one) for remove, one in listed if one.owner_id != stays.id]
        remove, first = orphans[0]
        with pytest.raises(LeaseLost):
            remove(context(GuardThatEnds(0)), first)
        assert external.state() == everything
        for remove, orphan in orphans:
            interrupted_everywhere(partial(_remove, remove, orphan))
            remove(context(), orphan)
        assert external.state() == alone
        assert {one.owner_id for _, one in _owned(driver, server)} == {stays.id}
        driver.delete_share(context(), stays, server)
        assert external.state() == empty

    def test_decommission_is_refused_while_shares_exist(
        self, driver: ShareDriver, server: ShareServer | None, share: Share
    ) -> None:
        if not isinstance(driver, Decommission):
            pytest.skip("the driver lacks the capability Decommission")
        driver.create_share(context(), share, server)
        with pytest.raises(Conflict):
            driver.decommission(context())
        driver.delete_share(context(), share, server)
        driver.decommission(context())
        driver.decommission(context())


def _remove(
    remove: Callable[[RequestContext, OwnedResource], None],
    owned: OwnedResource,
    given: RequestContext,
) -> None:
    remove(given, owned)


def _owned(
    driver: Audit, server: ShareServer | None
) -> list[tuple[Callable[[RequestContext, OwnedResource], None], OwnedResource]]:
    """Return the driver's listed resources with the function that removes each, server's first."""
    found: list[tuple[Callable[[RequestContext, OwnedResource], None], OwnedResource]] = []
    if isinstance(driver, AuditOnServers) and server is not None:

        def remove_there(given: RequestContext, owned: OwnedResource) -> None:
            driver.remove_orphan_on(given, server, owned)

        found += [(remove_there, one) for one in driver.owned_on(context(), server)]
    return found + [(driver.remove_orphan, one) for one in driver.owned(context())]
