"""Pools as arithmetic: every refusal has a field and a sentence, and the ranges are right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPAddress, IPNetwork, IPSet

from worker.addressing import BACKEND_FIELDS, Pool, network_info, parse_pool, share_network_pool
from worker.errors import InvalidRequest
from worker.model import NetworkKind, ShareNetwork

POOL = "flat_network_ip_pool"
SUBNET = "flat_network_subnet"
GATEWAY = "flat_network_gateway"


def listed(pool: Pool) -> list[str]:
    return [
        str(IPAddress(number, 4 if pool.ip_version == 4 else 6))
        for first, last in pool.ranges
        for number in range(first, last + 1)
    ]


@pytest.mark.parametrize(
    ("entries", "subnet", "gateway", "reserved", "expected"),
    [
        (["10.0.0.0/30"], None, None, [], ["10.0.0.1", "10.0.0.2"]),
        (["10.0.0.0/31"], None, None, [], ["10.0.0.0", "10.0.0.1"]),
        (["10.0.0.7/32"], None, None, [], ["10.0.0.7"]),
        (["2001:db8::/127"], None, None, [], ["2001:db8::", "2001:db8::1"]),
        (["2001:db8::7/128"], None, None, [], ["2001:db8::7"]),
        (["2001:db8::/126"], None, None, [], ["2001:db8::1", "2001:db8::2", "2001:db8::3"]),
        (["10.0.0.0/31"], None, "10.0.0.0", [], ["10.0.0.1"]),
        # A CIDR of the pool is not a subnet: its own edges are ordinary addresses.
        (["10.0.0.8/30"], "10.0.0.0/24", None, [], [f"10.0.0.{n}" for n in (8, 9, 10, 11)]),
        (["10.0.0.0/30"], "10.0.0.0/24", "10.0.0.2", [], ["10.0.0.1", "10.0.0.3"]),
        (["10.0.0.9", "10.0.0.3-10.0.0.4"], "10.0.0.0/24", None, [], None),
        (["10.0.0.0/29"], None, "10.0.0.1", ["10.0.0.3-10.0.0.5"], ["10.0.0.2", "10.0.0.6"]),
        (["10.0.0.5", "10.0.0.4"], "10.0.0.0/24", None, [], ["10.0.0.4", "10.0.0.5"]),
        (["10.0.0.5 - 10.0.0.6"], "10.0.0.0/24", None, [], ["10.0.0.5", "10.0.0.6"]),
    ],
)
def test_what_can_be_given_out(
    entries: list[str],
    subnet: str | None,
    gateway: str | None,
    reserved: list[str],
    expected: list[str] | None,
) -> None:
    pool = parse_pool(entries, subnet=subnet, gateway=gateway, reserved=reserved)
    if expected is None:
        expected = ["10.0.0.3", "10.0.0.4", "10.0.0.9"]
    assert listed(pool) == expected
    assert pool.size == len(expected)
    assert all(address in pool for address in expected)


@pytest.mark.parametrize(
    ("entries", "subnet", "gateway", "field", "words"),
    [
        ([], "10.0.0.0/24", None, POOL, "empty"),
        (["10.0.0.300"], "10.0.0.0/24", None, POOL, "not an IP address"),
        (["nonsense"], "10.0.0.0/24", None, POOL, "not an IP address"),
        (["10.0.0.0/33"], None, None, POOL, "not a CIDR"),
        (["10.0.0.0/255.255.255.0"], None, None, POOL, "not a CIDR"),
        (["/24"], None, None, POOL, "not a CIDR"),
        (["10.0.0.5/24"], None, None, POOL, "host bits"),
        (["10.0.0.5"], "10.0.0.1/24", None, SUBNET, "host bits"),
        (["10.0.0.5"], None, None, SUBNET, "missing"),
        (["10.0.0.0/25", "10.0.0.128/25"], None, None, SUBNET, "missing"),
        (["10.0.1.5"], "10.0.0.0/24", None, POOL, "not inside"),
        (["10.0.0.0/16"], "10.0.0.0/24", None, POOL, "not inside"),
        (["10.0.0.250-10.0.1.5"], "10.0.0.0/24", None, POOL, "not inside"),
        (["2001:db8::5"], "10.0.0.0/24", None, POOL, "not inside"),
        (["::a00:5"], "10.0.0.0/24", None, POOL, "not inside"),
        (["10.0.0.9-10.0.0.5"], "10.0.0.0/24", None, POOL, "lower to a higher"),
        (["10.0.0.9-2001:db8::1"], "10.0.0.0/24", None, POOL, "lower to a higher"),
        (["10.0.0.1-10.0.0.2-10.0.0.3"], "10.0.0.0/24", None, POOL, "not a range"),
        (["10.0.0.5", "10.0.0.5"], "10.0.0.0/24", None, POOL, "named twice"),
        (["10.0.0.5", "10.0.0.5/32"], "10.0.0.0/24", None, POOL, "named twice"),
        (["10.0.0.0/25", "10.0.0.9"], "10.0.0.0/24", None, POOL, "overlap"),
        (["10.0.0.5-10.0.0.9", "10.0.0.8/29"], "10.0.0.0/24", None, POOL, "overlap"),
        (["10.0.0.0/24"], None, "10.0.1.1", GATEWAY, "outside the subnet"),
        (["10.0.0.0/24"], None, "10.0.0.255", GATEWAY, "broadcast"),
        (["10.0.0.0/24"], None, "10.0.0.0", GATEWAY, "network"),
        (["10.0.0.0/24"], None, "gateway", GATEWAY, "not an IP address"),
        (["10.0.0.7/32"], None, "10.0.0.7", POOL, "can be given out"),
        (["10.0.0.0", "10.0.0.255"], "10.0.0.0/24", None, POOL, "can be given out"),
        (["224.0.0.0/24"], None, None, POOL, "cannot hold"),
        (["127.0.0.0/8"], None, None, POOL, "cannot hold"),
        (["10.0.0.5"], "0.0.0.0/0", None, SUBNET, "cannot hold"),
        (["fe80::/64"], None, None, POOL, "cannot hold"),
        (
            [f"10.0.{n // 128}.{n % 128 * 2 + 1}" for n in range(600)],
            "10.0.0.0/16",
            None,
            POOL,
            "separate ranges",
        ),
    ],
)
def test_refused_with_field_and_sentence(
    entries: list[str], subnet: str | None, gateway: str | None, field: str, words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words) as refused:
        parse_pool(entries, subnet=subnet, gateway=gateway)
    assert refused.value.field == field


def test_reserved_is_refused_under_its_own_name() -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_pool(
            ["10.0.0.0/24"],
            subnet="10.0.0.0/24",
            gateway=None,
            reserved=["10.1.0.1"],
            fields=BACKEND_FIELDS,
        )
    assert refused.value.field == "reserved"


def test_a_large_ipv6_pool_costs_nothing() -> None:
    pool = parse_pool(["2001:db8::/32"], subnet=None, gateway="2001:db8::1")
    assert pool.size == 2**96 - 2
    assert "2001:db8:ffff::1" in pool
    assert "2001:db9::1" not in pool


def test_network_info_of_ipv4() -> None:
    pool = parse_pool(["10.0.0.0/24"], subnet=None, gateway="10.0.0.1")
    info = network_info(pool, ["10.0.0.9"])
    assert (info.cidr, info.netmask, info.prefix_length) == ("10.0.0.0/24", "255.255.255.0", 24)
    assert (info.broadcast, info.gateway, info.ip_version) == ("10.0.0.255", "10.0.0.1", 4)
    assert info.addresses == ("10.0.0.9",)
    assert info.segmentation_id is None


@pytest.mark.parametrize("cidr", ["10.0.0.0/31", "10.0.0.0/32", "2001:db8::/64", "2001:db8::/126"])
def test_no_broadcast_where_there_is_none(cidr: str) -> None:
    pool = parse_pool([cidr], subnet=None, gateway=None)
    assert network_info(pool, []).broadcast is None


def test_a_share_network_of_another_kind_has_no_pool() -> None:
    with pytest.raises(InvalidRequest, match="names no addresses"):
        share_network_pool(ShareNetwork("n", "p", NetworkKind.NEUTRON))


@st.composite
def mixes(draw: st.DrawFn) -> tuple[str, list[str], set[int]]:
    """A subnet, disjoint entries inside it in any order, and what they cover."""
    version = draw(st.sampled_from([4, 6]))
    base = "10.1.{}.0" if version == 4 else "2001:db8:{}::"
    prefix = draw(st.integers(22, 32)) if version == 4 else draw(st.integers(118, 128))
    subnet = IPNetwork(f"{base.format(draw(st.integers(0, 63)) * 4)}/{prefix}")
    offsets = sorted(draw(st.sets(st.integers(0, subnet.size - 1), min_size=1, max_size=12)))
    entries, covered = [], set()
    for place, offset in enumerate(offsets):
        room = (offsets[place + 1] if place + 1 < len(offsets) else subnet.size) - offset
        length = draw(st.integers(1, room))
        first = subnet.first + offset
        span = range(first, first + length)
        covered |= set(span)
        low, high = (str(IPAddress(n, 4 if version == 4 else 6)) for n in (span[0], span[-1]))
        entries.append(low if length == 1 and draw(st.booleans()) else f"{low}-{high}")
    return str(subnet), draw(st.permutations(entries)), covered


@given(mixes(), st.data())
def test_ranges_are_exactly_what_is_named_less_what_is_held_back(
    mix: tuple[str, list[str], set[int]], data: st.DataObject
) -> None:
    text, entries, covered = mix
    subnet = IPNetwork(text)
    hosts = IPSet(subnet)
    if subnet.size > 2:
        hosts.remove(IPAddress(subnet.first, subnet.version))
        if subnet.version == 4:
            hosts.remove(IPAddress(subnet.last, 4))
    usable = {int(address) for address in hosts}
    gateway = data.draw(st.none() | st.sampled_from(sorted(usable)))
    reserved = data.draw(st.sets(st.sampled_from(sorted(usable)), max_size=4))
    expected = (covered & usable) - {gateway} - reserved

    def parse() -> Pool:
        return parse_pool(
            entries,
            subnet=text,
            gateway=None if gateway is None else str(IPAddress(gateway, subnet.version)),
            reserved=[str(IPAddress(n, subnet.version)) for n in reserved],
        )

    if not expected:
        with pytest.raises(InvalidRequest, match="can be given out"):
            parse()
        return
    pool = parse()
    given_out = [n for first, last in pool.ranges for n in range(first, last + 1)]
    assert given_out == sorted(expected)
    assert pool.size == len(expected)
    for number in (subnet.first, subnet.last, *covered):
        assert (str(IPAddress(number, subnet.version)) in pool) == (number in expected)


def outcome(text: str) -> Pool | InvalidRequest:
    try:
        return parse_pool([text], subnet=None, gateway=None)
    except InvalidRequest as refused:
        return refused


@given(st.text(max_size=40) | st.text("0123456789abcdef.:/- ", max_size=40))
def test_any_text_is_taken_or_refused_with_a_field(text: str) -> None:
    result = outcome(text)
    if isinstance(result, Pool):
        assert result.size > 0
    else:
        assert result.field in {POOL, SUBNET}
        assert result.message.endswith(".")
