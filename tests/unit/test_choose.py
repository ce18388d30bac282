"""Placement: every filter's reason, the weighers, the order, and the refusals that are kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.choose import candidates, refusal, weight
from scheduler.filters import FILTERS, Wanted
from scheduler.pools import Pool
from scheduler.weighers import WEIGHERS, fewest_shares, free_capacity, uses_network
from worker.errors import NoCapacity
from worker.model import DriverMode, NetworkKind

POOL = Pool(
    backend="b1",
    name="p1",
    enabled=True,
    age=1.0,
    mode=DriverMode.FLAT_MULTI_SVM,
    protocols=frozenset({"NFS"}),
    network_kinds=frozenset({"flat_pool"}),
    total_gib=100,
    free_gib=100,
    allocated_gib=0,
    shares=0,
    capabilities={"ssd": "true"},
)
WANTED = Wanted(
    size=10,
    share_proto="NFS",
    network_kind=NetworkKind.FLAT_POOL,
    extra_specs={},
    report_expiry=120.0,
    over_subscription=1.0,
)
SINGLE = replace(POOL, mode=DriverMode.SINGLE_SVM, network_kinds=frozenset(NetworkKind))


def test_a_pool_that_fits() -> None:
    assert refusal(WANTED, POOL) is None
    assert candidates(WANTED, [POOL]) == [POOL]


@pytest.mark.parametrize(
    ("wanted", "pool", "reason"),
    [
        ({}, {"enabled": False}, "the backend is disabled"),
        ({}, {"age": 121.0}, "the backend is down: its last report is 121 s old"),
        ({"only": ("b2", "p1")}, {}, "the snapshot is on b2#p1"),
        ({"only": ("b1", "p2")}, {}, "the snapshot is on b1#p2"),
        (
            {"network_kind": None},
            {},
            "its mode is flat_multi_svm, which needs a share network with addresses",
        ),
        (
            {"network_kind": NetworkKind.NONE},
            {"mode": DriverMode.MANAGED_MULTI_SVM},
            "its mode is managed_multi_svm, which needs a share network with addresses",
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
    assert refusal(replace(WANTED, **wanted), replace(POOL, **pool)) == reason


@pytest.mark.parametrize(
    ("wanted", "pool"),
    [
        ({}, {"age": 120.0}),
        ({"only": ("b1", "p1")}, {}),
        ({"extra_specs": {"driver_mode": "flat_multi_svm", "ssd": "true"}}, {}),
        ({"extra_specs": {"share_backend_name": "b1"}}, {}),
        ({"size": 10}, {"allocated_gib": 90, "free_gib": 10}),
        ({"size": 100, "over_subscription": 2.0}, {"allocated_gib": 100}),
    ],
)
def test_what_just_fits(wanted: dict[str, Any], pool: dict[str, Any]) -> None:
    assert refusal(replace(WANTED, **wanted), replace(POOL, **pool)) is None


@pytest.mark.parametrize("kind", [None, *NetworkKind])
def test_a_predefined_server_ignores_every_kind(kind: NetworkKind | None) -> None:
    assert refusal(replace(WANTED, network_kind=kind), SINGLE) is None


def test_free_capacity_weighs() -> None:
    half = replace(POOL, allocated_gib=50)
    assert free_capacity(WANTED, POOL) == 1.0
    assert free_capacity(WANTED, half) == 0.5
    assert free_capacity(replace(WANTED, over_subscription=2.0), half) == 0.75
    assert free_capacity(WANTED, replace(POOL, total_gib=0)) == 0.0


def test_fewest_shares_weighs() -> None:
    assert fewest_shares(WANTED, POOL) == 1.0
    assert fewest_shares(WANTED, replace(POOL, shares=3)) == 0.25


def test_a_named_network_is_meant() -> None:
    assert uses_network(WANTED, POOL) == 1.0
    assert uses_network(WANTED, SINGLE) == 0.0
    assert uses_network(replace(WANTED, network_kind=None), SINGLE) == 1.0
    busy = replace(POOL, allocated_gib=90, shares=500)
    assert candidates(WANTED, [SINGLE, busy])[0] is busy


def test_the_best_comes_first_and_equals_by_name() -> None:
    full = replace(POOL, name="full", allocated_gib=80)
    twin = replace(POOL, name="p0")
    assert [pool.name for pool in candidates(WANTED, [full, POOL, twin])] == ["p0", "p1", "full"]


def test_the_reasons_are_kept_and_shown() -> None:
    off = replace(POOL, name="off", enabled=False)
    old = replace(POOL, name="old", age=999.0)
    with pytest.raises(NoCapacity) as caught:
        candidates(WANTED, [off, old])
    assert caught.value.refusals == {
        "b1#off": "the backend is disabled",
        "b1#old": "the backend is down: its last report is 999 s old",
    }
    for key, reason in caught.value.refusals.items():
        assert f"{key}: {reason}" in caught.value.message
    assert "10 GiB over NFS" in caught.value.message


def test_at_most_ten_reasons_are_shown() -> None:
    pools = [replace(POOL, name=f"p{number:02}", enabled=False) for number in range(13)]
    with pytest.raises(NoCapacity) as caught:
        candidates(WANTED, pools)
    assert len(caught.value.refusals) == 13
    assert caught.value.message.count("disabled") == 10
    assert caught.value.message.endswith("(and 3 more).")


def test_nothing_to_choose_from() -> None:
    with pytest.raises(NoCapacity, match="No backend has reported a storage pool yet"):
        candidates(WANTED, [])


pools = st.builds(
    Pool,
    backend=st.sampled_from(["b1", "b2", "b3"]),
    name=st.text("pq12", min_size=1, max_size=4),
    enabled=st.booleans(),
    age=st.floats(0, 300),
    mode=st.sampled_from(DriverMode),
    protocols=st.frozensets(st.sampled_from(["NFS", "CIFS"])),
    network_kinds=st.frozensets(st.sampled_from([str(kind) for kind in NetworkKind])),
    total_gib=st.integers(0, 10_000),
    free_gib=st.integers(0, 10_000),
    allocated_gib=st.integers(0, 10_000),
    shares=st.integers(0, 10_000),
    capabilities=st.dictionaries(st.sampled_from("xy"), st.sampled_from("01"), max_size=2),
)
wanteds = st.builds(
    Wanted,
    size=st.integers(1, 10_000),
    share_proto=st.sampled_from(["NFS", "CIFS"]),
    network_kind=st.none() | st.sampled_from(NetworkKind),
    extra_specs=st.dictionaries(st.sampled_from("xy"), st.sampled_from("01"), max_size=1),
    report_expiry=st.just(120.0),
    over_subscription=st.sampled_from([0.5, 1.0, 3.0]),
    only=st.none(),
)


@given(wanteds, pools)
def test_each_weigher_stays_between_0_and_1(wanted: Wanted, pool: Pool) -> None:
    assert all(0.0 <= weigh(wanted, pool) <= 1.0 for weigh, _ in WEIGHERS)


@given(wanteds, st.lists(pools, max_size=8, unique_by=lambda pool: pool.key))
def test_every_pool_is_either_chosen_or_refused_with_a_reason(
    wanted: Wanted, choice: list[Pool]
) -> None:
    fitting = [pool for pool in choice if all(test(wanted, pool) is None for test in FILTERS)]
    if not fitting:
        with pytest.raises(NoCapacity) as caught:
            candidates(wanted, choice)
        assert caught.value.refusals.keys() == {pool.key for pool in choice}
        assert all(caught.value.refusals.values())
        return
    found = candidates(wanted, choice)
    assert sorted(found, key=lambda pool: pool.key) == sorted(fitting, key=lambda pool: pool.key)
    weights = [weight(wanted, pool) for pool in found]
    assert weights == sorted(weights, reverse=True)
    for pool in found:
        assert pool.allocated_gib + wanted.size <= pool.total_gib * wanted.over_subscription
        assert wanted.size <= pool.free_gib


@given(wanteds, st.lists(pools, min_size=1, max_size=6, unique_by=lambda pool: pool.key), st.data())
def test_the_order_of_the_reports_does_not_count(
    wanted: Wanted, choice: list[Pool], data: st.DataObject
) -> None:
    def outcome(order: list[Pool]) -> object:
        try:
            return candidates(wanted, order)
        except NoCapacity as error:
            return error.message

    assert outcome(choice) == outcome(data.draw(st.permutations(choice)))
