"""The table kind x mode x helper, cell by cell, against one written by hand."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Final

import pytest

from scheduler.placement.choose import refusal_of_offer
from scheduler.placement.filters import PlacementRequest
from scheduler.placement.pools import PoolSpec
from worker.backends.network_kinds import Use, served_kinds, service
from worker.db.networks.addresses import DatabaseAddressStore
from worker.helpers.network.flat_network.helper import FlatNetworkHelper, FlatNetworkOptions
from worker.model import DriverMode, NetworkKind
from worker.plugin import BackendContext


@dataclass(frozen=True, slots=True)
class Helper:
    """What a network helper says of itself."""

    name: str
    kinds: frozenset[NetworkKind]
    has_own_addresses: bool = True


K = NetworkKind
HELPERS: Final = {
    helper.name: helper
    for helper in (
        Helper("flat", frozenset({K.FLAT_POOL, K.DHCP})),
        # A flat helper that has no subnet in the configuration.
        Helper("bare", frozenset({K.FLAT_POOL, K.DHCP}), has_own_addresses=False),
        Helper("neutron", frozenset({K.NEUTRON, K.MANAGED})),
        # The same in a backend that configures no network of its own.
        Helper("unset", frozenset({K.NEUTRON, K.MANAGED}), has_own_addresses=False),
        Helper("nova", frozenset({K.NOVA})),
        Helper("segments", frozenset({K.MANAGED})),
        Helper("all", frozenset(K) - {K.NONE}),
    )
}

# A name: that helper serves it from its own options. (name): that helper serves it, and its
# options are ignored. (): taken, and no helper is asked. -: refused.
SINGLE: Final = """
helpers         neutron   nova      flat_pool  dhcp     managed   none
-               ()        ()        ()         ()       ()        ()
"""
FLAT: Final = """
helpers         neutron   nova      flat_pool  dhcp     managed   none
flat            (flat)    (flat)    -          -        -         -
bare            -         -         -          -        -         -
neutron         (neutron) (neutron) -          -        -         -
nova            (nova)    (nova)    -          -        -         -
segments        (segments) (segments) -        -        -         -
all             (all)     (all)     -          -        -         -
flat+neutron    (neutron) (flat)    -          -        -         -
flat+nova       (flat)    (nova)    -          -        -         -
flat+segments   (flat)    (flat)    -          -        -         -
bare+neutron    (neutron) (neutron) -          -        -         -
bare+nova       (nova)    (nova)    -          -        -         -
bare+segments   (segments) (segments) -        -        -         -
neutron+nova    (neutron) (nova)    -          -        -         -
nova+segments   (nova)    (nova)    -          -        -         -
flat+neutron+nova (neutron) (nova)  -          -        -         -
bare+neutron+nova (neutron) (nova)  -          -        -         -
flat+nova+segments (flat) (nova)    -          -        -         -
bare+nova+segments (nova) (nova)    -          -        -         -
unset           -         -         -          -        -         -
flat+unset      (flat)    (flat)    -          -        -         -
bare+unset      -         -         -          -        -         -
unset+nova      (nova)    (nova)    -          -        -         -
flat+unset+nova (flat)    (nova)    -          -        -         -
bare+unset+nova (nova)    (nova)    -          -        -         -
"""
FLAT_WITH_SHARE_NETWORK_ADDRESSES: Final = """
helpers         neutron   nova      flat_pool  dhcp     managed   none
flat            (flat)    (flat)    flat       flat     -         -
bare            -         -         bare       bare     -         -
neutron         (neutron) (neutron) -          -        -         -
nova            (nova)    (nova)    -          -        -         -
segments        (segments) (segments) -        -        -         -
all             (all)     (all)     all        all      -         -
flat+neutron    (neutron) (flat)    flat       flat     -         -
flat+nova       (flat)    (nova)    flat       flat     -         -
flat+segments   (flat)    (flat)    flat       flat     -         -
bare+neutron    (neutron) (neutron) bare       bare     -         -
bare+nova       (nova)    (nova)    bare       bare     -         -
bare+segments   (segments) (segments) bare     bare     -         -
neutron+nova    (neutron) (nova)    -          -        -         -
nova+segments   (nova)    (nova)    -          -        -         -
flat+neutron+nova (neutron) (nova)  flat       flat     -         -
bare+neutron+nova (neutron) (nova)  bare       bare     -         -
flat+nova+segments (flat) (nova)    flat       flat     -         -
bare+nova+segments (nova) (nova)    bare       bare     -         -
unset           -         -         -          -        -         -
flat+unset      (flat)    (flat)    flat       flat     -         -
bare+unset      -         -         bare       bare     -         -
unset+nova      (nova)    (nova)    -          -        -         -
flat+unset+nova (flat)    (nova)    flat       flat     -         -
bare+unset+nova (nova)    (nova)    bare       bare     -         -
"""
MANAGED: Final = """
helpers         neutron   nova      flat_pool  dhcp     managed   none
flat            -         -         flat       flat     -         -
bare            -         -         bare       bare     -         -
neutron         neutron   -         -          -        neutron   -
nova            -         nova      -          -        -         -
segments        -         -         -          -        segments  -
all             all       all       all        all      all       -
flat+neutron    neutron   -         flat       flat     neutron   -
flat+nova       -         nova      flat       flat     -         -
flat+segments   -         -         flat       flat     segments  -
bare+neutron    neutron   -         bare       bare     neutron   -
bare+nova       -         nova      bare       bare     -         -
bare+segments   -         -         bare       bare     segments  -
neutron+nova    neutron   nova      -          -        neutron   -
nova+segments   -         nova      -          -        segments  -
flat+neutron+nova neutron nova      flat       flat     neutron   -
bare+neutron+nova neutron nova      bare       bare     neutron   -
flat+nova+segments -      nova      flat       flat     segments  -
bare+nova+segments -      nova      bare       bare     segments  -
unset           unset     -         -          -        unset     -
flat+unset      unset     -         flat       flat     unset     -
bare+unset      unset     -         bare       bare     unset     -
unset+nova      unset     nova      -          -        unset     -
flat+unset+nova unset     nova      flat       flat     unset     -
bare+unset+nova unset     nova      bare       bare     unset     -
"""
TABLES: Final = (
    # single_svm asks nobody, whatever share_network_addresses says.
    (DriverMode.SINGLE_SVM, False, SINGLE),
    (DriverMode.SINGLE_SVM, True, SINGLE),
    (DriverMode.FLAT_MULTI_SVM, False, FLAT),
    (DriverMode.FLAT_MULTI_SVM, True, FLAT_WITH_SHARE_NETWORK_ADDRESSES),
    (DriverMode.MANAGED_MULTI_SVM, False, MANAGED),
    (DriverMode.MANAGED_MULTI_SVM, True, MANAGED),
)
Cell = tuple[DriverMode, bool, str, NetworkKind, str]


def cells() -> list[Cell]:
    found = []
    for mode, brought, table in TABLES:
        head, *lines = table.strip().splitlines()
        kinds = [NetworkKind(word) for word in head.split()[1:]]
        assert set(kinds) == set(NetworkKind)
        for line in lines:
            helpers, *row = line.split()
            found += [
                (mode, brought, helpers, kind, cell) for kind, cell in zip(kinds, row, strict=True)
            ]
    return found


CELLS: Final = cells()


def parts(helpers: str) -> tuple[Helper, ...]:
    return () if helpers == "-" else tuple(HELPERS[name] for name in helpers.split("+"))


def label(cell: Cell) -> str:
    mode, brought, helpers, kind, _ = cell
    return f"{mode}-{'brought' if brought else 'own'}-{helpers}-{kind}"


def test_the_table_has_every_set_of_helpers() -> None:
    """Every set that a backend may list: two that serve one kind are refused at start."""
    allowed = {
        "+".join(helper.name for helper in chosen)
        for size in range(1, len(HELPERS) + 1)
        for chosen in combinations(HELPERS.values(), size)
        if sum(len(helper.kinds) for helper in chosen)
        == len(frozenset().union(*(helper.kinds for helper in chosen)))
    }
    for mode in (DriverMode.FLAT_MULTI_SVM, DriverMode.MANAGED_MULTI_SVM):
        for brought in (False, True):
            assert {cell[2] for cell in CELLS if cell[:2] == (mode, brought)} == allowed


@pytest.mark.parametrize("cell", CELLS, ids=label)
def test_a_cell(cell: Cell) -> None:
    mode, brought, helpers, kind, expected = cell
    found = service(mode, parts(helpers), kind, share_network_addresses=brought)
    name = found.helper.name if found.helper else ""
    shown = {Use.USED: name, Use.IGNORED: f"({name})", Use.REFUSED: f"-{name}"}[found.use]
    assert shown == expected


@pytest.mark.parametrize("cell", CELLS, ids=label)
def test_placement_decides_by_the_same_cell(cell: Cell) -> None:
    mode, brought, helpers, kind, expected = cell
    kinds = served_kinds(mode, parts(helpers), share_network_addresses=brought)
    offer = PoolSpec(
        enabled=True,
        mode=mode,
        protocols=frozenset({"NFS"}),
        network_kinds=frozenset(str(served) for served in kinds),
        capabilities=frozenset(),
    )
    wanted = PlacementRequest(
        size=1,
        share_proto="NFS",
        network_kind=kind,
        extra_specs={},
        report_expiry=1.0,
    )
    assert (refusal_of_offer(wanted, offer) is not None) == (expected == "-")


@pytest.mark.parametrize(
    ("options", "has_own"), [({}, False), ({"subnet": "10.0.0.0/24"}, True)], ids=str
)
def test_a_flat_helper_has_addresses_when_it_has_a_subnet(
    tmp_path: Path, options: dict[str, str], has_own: bool
) -> None:
    helper = FlatNetworkHelper(
        BackendContext("b", DriverMode.FLAT_MULTI_SVM, tmp_path, share_network_addresses=True),
        FlatNetworkOptions(**options),
        DatabaseAddressStore("sqlite://", rest=0.0),
    )
    assert helper.has_own_addresses is has_own
    assert service(
        DriverMode.FLAT_MULTI_SVM, (helper,), K.NEUTRON, share_network_addresses=True
    ).use is (Use.IGNORED if has_own else Use.REFUSED)
