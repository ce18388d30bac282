"""A share network's options: which go together, and what each may be."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler.requests.base import parse
from scheduler.requests.share_networks import CreateShareNetwork, UpdateShareNetwork
from scheduler.requests.verbs import VERBS
from tests.support.network_options import ALLOWED, VALUES, fields, forbidden
from worker.addressing import Endpoint, parse_endpoint
from worker.errors import InvalidRequest


def create(**options: Any) -> Any:
    payload = {"version": 1, "context": {"project_id": "p1"}, **options}
    return parse(VERBS["create_share_network"], payload)


def update(**options: Any) -> Any:
    payload = {"version": 1, "context": {"project_id": "p1"}, "share_network_id": "n", **options}
    return parse(VERBS["update_share_network"], payload)


def _name(value: object) -> str:
    """The same in every process: a set's own order is not."""
    return "+".join(sorted(value)) if isinstance(value, frozenset) else str(value)


@pytest.mark.parametrize(("chosen", "kind"), ALLOWED.items(), ids=_name)
def test_options_that_go_together_make_a_kind(chosen: frozenset[str], kind: str) -> None:
    options = {name: VALUES[name] for name in chosen}
    for made in (create(**options), update(**options)):
        assert isinstance(made, (CreateShareNetwork, UpdateShareNetwork))
        assert made.kind == kind
        columns = made.columns()
        assert {name for name, value in columns.items() if value is not None} == {
            "kind",
            *(chosen - {"managed"}),
        }
        assert columns == {**columns, "kind": kind, **_without(options, "managed")}


def _without(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


def test_all_others_are_refused() -> None:
    """Of the 512 sets of options 502 make no share network."""
    combos = forbidden()
    assert len(combos) == 502
    for chosen in combos:
        for ask in (create, update):
            with pytest.raises(InvalidRequest) as caught:
                ask(**fields(chosen))
            message = caught.value.message
            assert caught.value.field in VALUES, chosen
            # At least one option that was given is named.
            assert any(name in message for name in chosen), (chosen, message)
            assert message.endswith(".")


def test_all_kinds_that_contradict_are_named() -> None:
    with pytest.raises(InvalidRequest) as caught:
        create(**fields(("nova_network_id", "flat_network_subnet", "dhcp_endpoint")))
    assert caught.value.message == (
        "create_share_network: dhcp_endpoint: nova_network_id, flat_network_subnet and "
        "dhcp_endpoint exclude each other: a share network has one kind; give the options of one "
        "kind only."
    )


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"managed": 1}, "managed"),
        ({"managed": "yes"}, "managed"),
        ({"managed": True, "cidr": "10.0.0.1/24"}, "cidr"),
        ({"managed": True, "cidr": "10.0.0.0/33"}, "cidr"),
        ({"managed": True, "cidr": "127.0.0.0/8"}, "cidr"),
        ({"managed": False, "cidr": "10.0.0.0/24"}, "cidr"),
        ({"dhcp_endpoint": "127.0.0.1"}, "dhcp_endpoint"),
        ({"flat_network_ip_pool": ["10.0.0.7/24"]}, "flat_network_ip_pool"),
        ({"flat_network_ip_pool": ["10.0.0.0/24", "10.0.1.0/24"]}, "flat_network_subnet"),
        (
            {"flat_network_ip_pool": ["10.0.1.1"], "flat_network_subnet": "10.0.0.0/24"},
            "flat_network_ip_pool",
        ),
        (
            {
                "flat_network_ip_pool": ["10.0.0.4/30", "10.0.0.5"],
                "flat_network_subnet": "10.0.0.0/24",
            },
            "flat_network_ip_pool",
        ),
        (
            {
                "flat_network_ip_pool": ["10.0.0.5", "10.0.0.5"],
                "flat_network_subnet": "10.0.0.0/24",
            },
            "flat_network_ip_pool",
        ),
        (
            {"flat_network_ip_pool": ["10.0.0.0/24"], "flat_network_gateway": "10.0.1.1"},
            "flat_network_gateway",
        ),
        ({"is_public": 1}, "is_public"),
    ],
    ids=str,
)
def test_values_that_are_none(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        create(**options)
    assert caught.value.field == field
    assert field in caught.value.message


def test_not_managed_says_nothing() -> None:
    assert create(managed=False).kind == "none"
    assert create(managed=False, nova_network_id="n").kind == "nova"
    assert not update(managed=False).options_given


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.0.0.2", "10.0.0.2", None),
        ("10.0.0.2:67", "10.0.0.2", 67),
        ("dhcp.example.org", "dhcp.example.org", None),
        ("dhcp-1:6767", "dhcp-1", 6767),
        ("[fd00::1]", "fd00::1", None),
        ("[FD00:0::1]:547", "fd00::1", 547),
        ("3com.example", "3com.example", None),
        ("10.0.0.2:65535", "10.0.0.2", 65535),
    ],
)
def test_endpoints(text: str, host: str, port: int | None) -> None:
    assert parse_endpoint(text, "dhcp_endpoint") == Endpoint(host, port)


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", ":67", "host:", "host:0", "host:65536", "host:-1", "host:67:68", "host:x"),
        *(
            "host:\uff16\uff17",
            "a b",
            "-host",
            "host-",
            "a..b",
            ".a",
            "a.",
            "x" * 64,
            "a." * 127 + "a",
        ),
        *("10.0.0.256", "10.0.0", "7", "10.0.0.1/24", "1.2.3.4.5", "example.7"),
        *("fd00::1", "fd00::1:547", "[fd00::1", "[fd00::1]547", "[fd00::1]:", "[]", "[]:67"),
        *("[10.0.0.2]", "[host]:67", "[fe80::1]:547", "[fe80::1%eth0]:547", "[::1]", "[::]:547"),
        *("127.0.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.1", "169.254.1.1", "[ff02::1:2]"),
        *("http://host", "user@host", "host/x", "höst", "host\n", "10.0.0.2\n"),
    ],
    ids=repr,
)
def test_endpoints_that_are_none(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_endpoint(text, "dhcp_endpoint")
    assert caught.value.field == "dhcp_endpoint"
    assert caught.value.message.endswith(".")
