"""Every way of combining a share network's options, and which of them make one."""

from __future__ import annotations

from itertools import combinations
from typing import Any, Final

VALUES: Final[dict[str, Any]] = {
    "neutron_net_id": "net-1",
    "neutron_subnet_id": "subnet-1",
    "nova_network_id": "nova-1",
    "flat_network_ip_pool": ["10.0.0.0/24"],
    "flat_network_subnet": "10.0.0.0/24",
    "flat_network_gateway": "10.0.0.1",
    "dhcp_endpoint": "10.0.0.2:67",
    "managed": True,
    "cidr": "10.1.0.0/24",
}
ALLOWED: Final = {
    frozenset[str](): "none",
    frozenset({"neutron_net_id", "neutron_subnet_id"}): "neutron",
    frozenset({"nova_network_id"}): "nova",
    frozenset({"flat_network_ip_pool"}): "flat_pool",
    frozenset({"flat_network_ip_pool", "flat_network_subnet"}): "flat_pool",
    frozenset({"flat_network_ip_pool", "flat_network_gateway"}): "flat_pool",
    frozenset({"flat_network_ip_pool", "flat_network_subnet", "flat_network_gateway"}): "flat_pool",
    frozenset({"dhcp_endpoint"}): "dhcp",
    frozenset({"managed"}): "managed",
    frozenset({"managed", "cidr"}): "managed",
}
"""Written by hand: every set of options that makes a share network, and of which kind."""


def sets(largest: int = len(VALUES)) -> list[tuple[str, ...]]:
    """Every set of at most so many options."""
    return [chosen for size in range(largest + 1) for chosen in combinations(VALUES, size)]


def forbidden(largest: int = len(VALUES)) -> list[tuple[str, ...]]:
    """Every set of at most so many options that makes no share network."""
    return [chosen for chosen in sets(largest) if frozenset(chosen) not in ALLOWED]


def fields(chosen: tuple[str, ...]) -> dict[str, Any]:
    """The options with a value each, good by itself."""
    return {name: VALUES[name] for name in chosen}
