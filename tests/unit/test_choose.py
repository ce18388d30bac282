"""Placement: every filter's reason, the weighers, the order, and the refusals that are kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.placement.choose import candidates, no_capacity, refusals
from scheduler.placement.filters import OFFER_FILTERS, POOL_FILTERS, PlacementRequest
from scheduler.placement.pool_cache import PoolTable
from scheduler.placement.pools import Pool, PoolSpec
from scheduler.placement.weighers import (
    BACKEND_WEIGHERS,
    OFFER_WEIGHERS,
    POOL_WEIGHERS,
    affinity,
    fewest_shares,
    free_capacity,
    preference,
    serves_network,
    suitability,
    uses_network,
)
from worker.model import DriverMode, NetworkKind

OFFER = PoolSpec(
    enabled=True,
    mode=DriverMode.FLAT_MULTI_SVM,
    protocols=frozenset({"NFS"}),
    network_kinds=frozenset({"flat_pool"}),
    capabilities=frozenset({("ssd", "true")}),
)
POOL = Pool(
    backend="b1",
    name="p1",
    offer=OFFER,
    reported_at=999.0,
    is_listed=True,
    promisable_gib=100,
    free_gib=100,
    allocated_gib=0,
    shares=0,
)
WANTED = PlacementRequest(
    size=10,
    share_proto="NFS",
    network_kind=NetworkKind.FLAT_POOL,
    extra_specs={},
    report_expiry=120.0,
    now=1000.0,
)
SINGLE = replace(
    POOL,
    backend="single",
    offer=replace(OFFER, mode=DriverMode.SINGLE_SVM, network_kinds=frozenset(NetworkKind)),
)


def chosen(wanted: PlacementRequest, *pools: Pool) -> list[Pool]:
    return list(candidates(wanted, PoolTable(pools)))


def changed(**values: Any) -> Pool:
    """The pool with other numbers, or of another offer."""
    offer = {name: values.pop(name) for name in PoolSpec.__slots__ if name in values}
    return replace(POOL, offer=replace(OFFER, **offer), **values)


def test_a_pool_that_fits() -> None:
    assert refusals(WANTED, PoolTable([POOL])) == {}
    assert chosen(WANTED, POOL) == [POOL]


@pytest.mark.parametrize(
    ("wanted", "pool", "reason"),
    [
        ({}, {"enabled": False}, "the backend is disabled"),
        ({}, {"reported_at": 879.0}, "the backend is down: its last report is 121 s old"),
        ({"only": ("b2", "p1")}, {}, "the snapshot is on b2#p1"),
        ({"only": ("b1", "p2")}, {}, "the snapshot is on b1#p2"),
        (
            {"network_kind": None},
            {},
            "its mode is flat_multi_svm, which needs addresses: name a share_network_id",
        ),
        (
            {"network_kind": NetworkKind.NONE},
            {"mode": DriverMode.MANAGED_MULTI_SVM},
            "its mode is managed_multi_svm, which needs addresses: name a share_network_id",
        ),
        (
            {"extra_specs": {"driver_mode": "single_svm"}},
            {},
            "its mode is flat_multi_svm, and the share type asks for single_svm",
        ),
        (
            {"network_kind": NetworkKind.NEUTRON},
            {},
            "it serves no share networks of kind neutron",
        ),
        ({"share_proto": "CIFS"}, {}, "it has no CIFS"),
        (
            {"extra_specs": {"ssd": "false"}},
            {},
            "the share type asks for ssd=false, and it has true",
        ),
        (
            {"extra_specs": {"colour": "blue"}},
            {},
            "the share type asks for colour=blue, and it has none",
        ),
        (
            {"extra_specs": {"share_backend_name": "b2"}},
            {},
            "the share type asks for share_backend_name=b2, and it has b1",
        ),
        ({"size": 11}, {"allocated_gib": 90}, "it has 10 GiB free"),
        ({"size": 6}, {"free_gib": 5}, "it has 5 GiB free"),
        ({"size": 1}, {"allocated_gib": 120}, "it has 0 GiB free"),
    ],
)
def test_each_reason(wanted: dict[str, Any], pool: dict[str, Any], reason: str) -> None:
    asked, found = replace(WANTED, **wanted), changed(**pool)
    assert refusals(asked, PoolTable([found])) == {"b1#p1": reason}
    assert chosen(asked, found) == []


@pytest.mark.parametrize(
    ("wanted", "pool"),
    [
        ({}, {"reported_at": 880.0}),
        ({"only": ("b1", "p1")}, {}),
        ({"extra_specs": {"driver_mode": "flat_multi_svm", "ssd": "true"}}, {}),
        ({"extra_specs": {"share_backend_name": "b1"}}, {}),
        ({"size": 10}, {"allocated_gib": 90, "free_gib": 10}),
        ({"size": 100}, {"promisable_gib": 200, "allocated_gib": 100}),
    ],
)
def test_what_just_fits(wanted: dict[str, Any], pool: dict[str, Any]) -> None:
    assert chosen(replace(WANTED, **wanted), changed(**pool)) == [changed(**pool)]


@pytest.mark.parametrize("kind", [None, *NetworkKind])
def test_a_predefined_server_ignores_every_kind(kind: NetworkKind | None) -> None:
    assert chosen(replace(WANTED, network_kind=kind), SINGLE) == [SINGLE]


def test_free_capacity_weighs() -> None:
    half = replace(POOL, allocated_gib=50)
    assert free_capacity(POOL) == 1.0
    assert free_capacity(half) == 0.5
    assert free_capacity(replace(half, promisable_gib=200)) == 0.75
    assert free_capacity(replace(POOL, promisable_gib=0)) == 0.0


def test_fewest_shares_weighs() -> None:
    assert fewest_shares(POOL) == 1.0
    assert fewest_shares(replace(POOL, shares=3)) == 0.25


def test_a_named_network_is_meant() -> None:
    assert uses_network(WANTED, OFFER) == 1.0
    assert uses_network(WANTED, SINGLE.offer) == 0.0
    assert uses_network(replace(WANTED, network_kind=None), SINGLE.offer) == 1.0
    busy = replace(POOL, allocated_gib=90, shares=500)
    assert chosen(WANTED, SINGLE, busy) == [busy, SINGLE]


def test_a_backend_with_a_server_for_the_network_comes_before_its_equals() -> None:
    here, there = replace(POOL, backend="b2"), replace(POOL, backend="b3")
    wanted = replace(WANTED, serving=frozenset({"b2", "gone"}))
    assert serves_network(wanted, "b2") == 1.0
    assert serves_network(wanted, "b3") == 0.0
    assert chosen(wanted, POOL, here, there) == [here, POOL, there]
    # It outweighs any number of shares, but not much more than half of a pool.
    many = replace(here, shares=10_000, allocated_gib=40)
    assert chosen(wanted, POOL, many) == [many, POOL]
    nearly_full = replace(many, allocated_gib=60)
    assert chosen(wanted, POOL, nearly_full) == [POOL, nearly_full]


def test_a_server_stands_in_vain_where_the_share_does_not_fit() -> None:
    wanted = replace(WANTED, serving=frozenset({"b1"}))
    other = replace(POOL, backend="b2")
    assert chosen(wanted, replace(POOL, allocated_gib=95), other) == [other]
    assert chosen(wanted, changed(enabled=False), other) == [other]


def test_the_best_comes_first_and_equals_by_name() -> None:
    full = replace(POOL, name="full", allocated_gib=80)
    twin = replace(POOL, name="p0")
    other = changed(name="p00", capabilities=frozenset())
    found = chosen(WANTED, full, POOL, other, twin)
    assert [pool.name for pool in found] == ["p0", "p00", "p1", "full"]


def test_the_reasons_are_kept_and_shown() -> None:
    off = changed(name="off", enabled=False)
    old = changed(name="old", reported_at=1.0)
    error = no_capacity(WANTED, refusals(WANTED, PoolTable([off, old])))
    assert error.refusals == {
        "b1#off": "the backend is disabled",
        "b1#old": "the backend is down: its last report is 999 s old",
    }
    for key, reason in error.refusals.items():
        assert f"{key}: {reason}" in error.message
    assert "10 GiB over NFS" in error.message


def test_at_most_ten_reasons_are_shown() -> None:
    pools = [changed(name=f"p{number:02}", enabled=False) for number in range(13)]
    error = no_capacity(WANTED, refusals(WANTED, PoolTable(pools)))
    assert len(error.refusals) == 13
    assert error.message.count("disabled") == 10
    assert error.message.endswith("(and 3 more).")


def test_nothing_to_choose_from() -> None:
    assert chosen(WANTED) == []
    error = no_capacity(WANTED, refusals(WANTED, PoolTable()))
    assert "No backend has reported a storage pool yet" in error.message


offers = st.builds(
    PoolSpec,
    enabled=st.booleans(),
    mode=st.sampled_from(DriverMode),
    protocols=st.frozensets(st.sampled_from(["NFS", "CIFS"])),
    network_kinds=st.frozensets(st.sampled_from([str(kind) for kind in NetworkKind])),
    capabilities=st.dictionaries(st.sampled_from("xy"), st.sampled_from("01"), max_size=2).map(
        lambda found: frozenset(found.items())
    ),
)
pools = st.builds(
    Pool,
    backend=st.sampled_from(["b1", "b2", "b3"]),
    name=st.text("pq12", min_size=1, max_size=4),
    offer=offers,
    reported_at=st.floats(700, 1000),
    promisable_gib=st.integers(0, 10_000),
    free_gib=st.integers(0, 10_000),
    allocated_gib=st.integers(0, 10_000),
    shares=st.integers(0, 10_000),
)
wanteds = st.builds(
    PlacementRequest,
    size=st.integers(1, 10_000),
    share_proto=st.sampled_from(["NFS", "CIFS"]),
    network_kind=st.none() | st.sampled_from(NetworkKind),
    extra_specs=st.dictionaries(st.sampled_from("xy"), st.sampled_from("01"), max_size=1),
    report_expiry=st.just(120.0),
    only=st.none(),
    now=st.just(1000.0),
    serving=st.frozensets(st.sampled_from(["b1", "b2", "b4"])),
)


@given(wanteds, pools)
def test_each_weigher_stays_between_0_and_1(wanted: PlacementRequest, pool: Pool) -> None:
    assert all(0.0 <= weigh(pool) <= 1.0 for weigh, _ in POOL_WEIGHERS)
    assert all(0.0 <= weigh(wanted, pool.offer) <= 1.0 for weigh, _ in OFFER_WEIGHERS)
    assert all(0.0 <= weigh(wanted, pool.backend) <= 1.0 for weigh, _ in BACKEND_WEIGHERS)


def fits(wanted: PlacementRequest, pool: Pool) -> bool:
    return all(test(wanted, pool.offer) is None for test in OFFER_FILTERS) and all(
        test(wanted, pool) is None for test in POOL_FILTERS
    )


@given(wanteds, st.lists(pools, max_size=8, unique_by=lambda pool: pool.key))
def test_every_pool_is_either_chosen_or_refused_with_a_reason(
    wanted: PlacementRequest, choice: list[Pool]
) -> None:
    found = chosen(wanted, *choice)
    refused = refusals(wanted, PoolTable(choice))
    assert {pool.key for pool in found} == {pool.key for pool in choice if fits(wanted, pool)}
    assert refused.keys() == {pool.key for pool in choice if not fits(wanted, pool)}
    assert all(refused.values())
    weights = [
        preference(pool) + (suitability(wanted, pool.offer) + affinity(wanted, pool.backend))
        for pool in found
    ]
    assert weights == sorted(weights, reverse=True)
    for pool in found:
        assert pool.allocated_gib + wanted.size <= pool.promisable_gib
        assert wanted.size <= pool.free_gib


@given(
    wanteds,
    st.lists(pools, max_size=8, unique_by=lambda pool: pool.key),
    st.lists(pools, max_size=8),
    st.lists(pools, max_size=3),
)
def test_a_snapshot_changed_pool_by_pool_is_the_same_as_one_read_whole(
    wanted: PlacementRequest, before: list[Pool], after: list[Pool], gone: list[Pool]
) -> None:
    pool_table = PoolTable(before)
    known = {pool.key: pool for pool in before}
    for pool in after:
        pool_table.put(pool)
        known[pool.key] = pool
    for pool in gone:
        pool_table.remove(pool)
        known.pop(pool.key, None)
    whole = PoolTable(known.values())
    assert list(candidates(wanted, pool_table)) == list(candidates(wanted, whole))
    assert refusals(wanted, pool_table) == refusals(wanted, whole)


@given(wanteds, st.lists(pools, min_size=1, max_size=6, unique_by=lambda pool: pool.key), st.data())
def test_the_order_of_the_reports_does_not_count(
    wanted: PlacementRequest, choice: list[Pool], data: st.DataObject
) -> None:
    other = data.draw(st.permutations(choice))
    assert chosen(wanted, *choice) == chosen(wanted, *other)
    assert refusals(wanted, PoolTable(choice)) == refusals(wanted, PoolTable(other))


def test_a_pool_that_its_backend_no_longer_reports_is_refused() -> None:
    lost = replace(POOL, is_listed=False)
    assert refusals(WANTED, PoolTable([lost])) == {
        "b1#p1": "its backend no longer reports the pool"
    }
