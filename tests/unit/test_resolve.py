"""Which share network a share is made on: the whole truth table."""

from __future__ import annotations

from itertools import product
from typing import Final

import pytest

from scheduler.placement.choose import candidates, refusals
from scheduler.placement.filters import PlacementRequest
from scheduler.placement.pool_cache import PoolTable
from scheduler.placement.pools import Pool, PoolSpec
from scheduler.placement.share_network import Named, Visibility, resolve
from worker.errors import Conflict, NotFound
from worker.model import DriverMode, NetworkKind

TABLE: Final = """
request  single_svm  share_type  configuration  default  -> comes to
public   any         any         any            any      -> request
own      any         any         any            any      -> request
foreign  any         any         any            any      -> not found
missing  any         any         any            any      -> not found
-        yes         any         any            any      -> none
-        no          public      any            any      -> share_type
-        no          own         any            any      -> share_type
-        no          foreign     any            any      -> refused: share_type
-        no          missing     any            any      -> refused: share_type
-        no          -           public         any      -> configuration
-        no          -           own            any      -> refused: configuration
-        no          -           foreign        any      -> refused: configuration
-        no          -           missing        any      -> refused: configuration
-        no          -           -              public   -> default
-        no          -           -              -        -> none
"""
"""Written by hand. ``any``: whatever is there does not count; ``-``: nothing is named."""

VISIBILITIES: Final = ("-", *(str(visibility) for visibility in Visibility))
SETTINGS: Final = {
    ("The extra spec share_network_id of the share type", "share_type"): "refused: share_type",
    (
        "The configuration's default_share_network_id",
        "share_network_id",
    ): "refused: configuration",
}
"""The sentence's beginning and the field, of each setting that is refused."""
CASES: Final = tuple(
    product(VISIBILITIES, ("yes", "no"), VISIBILITIES, VISIBILITIES, ("-", "public"))
)
"""A default that is not public cannot be: a database constraint, tested with the others."""


def rows() -> list[tuple[tuple[str, ...], str]]:
    lines = TABLE.strip().splitlines()[1:]
    split = (line.split("->") for line in lines)
    return [(tuple(conditions.split()), outcome.strip()) for conditions, outcome in split]


def expected(case: tuple[str, ...]) -> str:
    """The outcome of the one row that fits."""
    fitting = [
        outcome
        for conditions, outcome in rows()
        if all(want in {"any", has} for want, has in zip(conditions, case, strict=True))
    ]
    assert len(fitting) == 1, f"{case} has {len(fitting)} rows"
    return fitting[0]


def named(source: str, visibility: str) -> Named | None:
    return None if visibility == "-" else Named(f"net-of-{source}", Visibility(visibility))


def outcome(case: tuple[str, ...]) -> str:
    request, single, share_type, configuration, default = case
    try:
        found = resolve(
            request=named("request", request),
            share_type=named("share_type", share_type),
            configuration=named("configuration", configuration),
            default=named("default", default),
            asks_single_svm=single == "yes",
        )
    except NotFound:
        return "not found"
    except Conflict as error:
        return SETTINGS[error.message.partition(" names ")[0], error.field]
    return "none" if found is None else found.id.removeprefix("net-of-")


def test_every_row_is_reached() -> None:
    assert len(CASES) == 500
    assert {expected(case) for case in CASES} == {outcome for _, outcome in rows()}


@pytest.mark.parametrize("single", ["yes", "no"])
@pytest.mark.parametrize("request_", VISIBILITIES)
def test_the_truth_table(request_: str, single: str) -> None:
    cases = [case for case in CASES if case[:2] == (request_, single)]
    assert {case: outcome(case) for case in cases} == {case: expected(case) for case in cases}


def test_nobody_lands_where_they_could_not_ask_to_be() -> None:
    """What comes out is always a network that the project could have named itself."""
    for case in CASES:
        request, _, share_type, configuration, default = case
        visibility = {
            "request": request,
            "share_type": share_type,
            "configuration": configuration,
            "default": default,
        }.get(outcome(case))
        assert visibility in {None, "public", "own"}, case


def test_another_projects_network_and_none_at_all_look_the_same() -> None:
    def said(visibility: Visibility) -> str:
        with pytest.raises(NotFound) as caught:
            resolve(
                request=Named("n", visibility),
                share_type=None,
                configuration=None,
                default=None,
                asks_single_svm=False,
            )
        return str(caught.value.to_json())

    assert said(Visibility.FOREIGN) == said(Visibility.MISSING)


def pool(mode: DriverMode) -> Pool:
    return Pool(
        backend=str(mode),
        name="p",
        offer=PoolSpec(
            enabled=True,
            mode=mode,
            protocols=frozenset({"NFS"}),
            network_kinds=frozenset(NetworkKind),
            capabilities=frozenset(),
        ),
        reported_at=0.0,
        is_listed=True,
        promisable_gib=10,
        free_gib=10,
        allocated_gib=0,
        shares=0,
    )


POOLS: Final = PoolTable([pool(mode) for mode in DriverMode])


def wanted(kind: NetworkKind | None, **extra_specs: str) -> PlacementRequest:
    return PlacementRequest(
        size=1,
        share_proto="NFS",
        network_kind=kind,
        extra_specs=extra_specs,
        report_expiry=1.0,
    )


@pytest.mark.parametrize("kind", [None, NetworkKind.NONE])
def test_no_network_and_a_network_of_kind_none_ask_for_single_svm(
    kind: NetworkKind | None,
) -> None:
    assert [found.offer.mode for found in candidates(wanted(kind), POOLS)] == [
        DriverMode.SINGLE_SVM
    ]


@pytest.mark.parametrize("kind", [None, *NetworkKind])
def test_a_share_type_reaches_single_svm_whatever_the_network(kind: NetworkKind | None) -> None:
    asks = wanted(kind, driver_mode="single_svm")
    assert [found.offer.mode for found in candidates(asks, POOLS)] == [DriverMode.SINGLE_SVM]


def test_the_extra_spec_is_no_capability() -> None:
    assert refusals(wanted(NetworkKind.FLAT_POOL, share_network_id="n"), POOLS) == {}
