"""Validation of address pools, and their addresses as ranges of integers.

Pure functions on netaddr. The scheduler validates share networks with them, and network helpers
compute the addresses that they may allocate. A pool is kept as ranges and never enumerated, so
an IPv6 /64 costs no more than a /30.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from netaddr import AddrFormatError, IPAddress, IPNetwork

from worker.errors import InvalidRequest, ObjectKind
from worker.model import NetworkInfo, NetworkKind, ShareNetwork

Range = tuple[int, int]
"""An inclusive (first, last) pair of addresses as integers."""

MAX_RANGES: Final = 512
"""Maximum number of ranges in a pool; each is a term of the query for a free address."""

_LABEL: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_PORT: Final = re.compile(r"[0-9]{1,5}")
_LONGEST_NAME: Final = 253
_CIDR: Final = re.compile(r"[0-9A-Fa-f.:]+/[0-9]{1,3}")


@dataclass(frozen=True, slots=True)
class FieldNames:
    """Names of a pool's fields in the request or the options, for an error's ``field``."""

    pool: str
    subnet: str
    gateway: str
    reserved: str = "reserved"


SHARE_NETWORK_FIELDS: Final = FieldNames(
    "flat_network_ip_pool", "flat_network_subnet", "flat_network_gateway"
)
BACKEND_FIELDS: Final = FieldNames("ranges", "subnet", "gateway")


@dataclass(frozen=True, slots=True)
class Pool:
    """A subnet and its allocatable addresses, lowest first."""

    subnet: IPNetwork
    gateway: IPAddress | None
    ranges: tuple[Range, ...]

    @property
    def ip_version(self) -> int:
        """The IP version, 4 or 6."""
        return self.subnet.version

    @property
    def size(self) -> int:
        """The number of allocatable addresses."""
        return sum(last - first + 1 for first, last in self.ranges)

    def __contains__(self, address: str) -> bool:
        """Return whether the address may be allocated."""
        parsed = IPAddress(address)
        if parsed.version != self.ip_version:
            return False
        index = bisect_right(self.ranges, (int(parsed), self.subnet.last)) - 1
        return index >= 0 and int(parsed) <= self.ranges[index][1]


def parse_pool(
    entries: Sequence[str],
    *,
    subnet: str | None,
    gateway: str | None,
    reserved: Sequence[str] = (),
    fields: FieldNames = SHARE_NETWORK_FIELDS,
) -> Pool:
    """Validate a pool: CIDRs, addresses, ``first-last`` ranges, or a mix of them.

    ``subnet`` may be left out for exactly one CIDR, which is then the subnet. Network and
    broadcast address, gateway and ``reserved`` are excluded.

    Raises :class:`~worker.errors.InvalidRequest` with the invalid part in ``field``.
    """
    network = _subnet(entries, subnet, fields)
    held_back = list(_special(network))
    router = None
    if gateway is not None:
        router = _gateway(gateway, network, fields.gateway)
        held_back.append((int(router), int(router)))
    held_back += (span for _, span in _spans(reserved, network, fields.reserved))
    named = _disjoint(_spans(entries, network, fields.pool), fields.pool)
    ranges = tuple(_without(named, _merged(held_back)))
    if not ranges:
        raise InvalidRequest(
            "No address of the pool can be given out: all that it names are network, broadcast, "
            "gateway or reserved addresses; name more addresses.",
            field=fields.pool,
        )
    if len(ranges) > MAX_RANGES:
        raise InvalidRequest(
            f"The pool consists of {len(ranges)} separate ranges and at most {MAX_RANGES} are "
            f"allowed; name larger ranges.",
            field=fields.pool,
        )
    return Pool(network, router, ranges)


def share_network_pool(share_network: ShareNetwork) -> Pool:
    """Return the address pool of a ``flat_pool`` share network.

    Raises :class:`~worker.errors.InvalidRequest` as :func:`parse_pool`.
    """
    if share_network.kind is not NetworkKind.FLAT_POOL:
        raise InvalidRequest(
            f"Share network {share_network.id} is of kind {share_network.kind} and names no "
            f"addresses of its own.",
            object=ObjectKind.SHARE_NETWORK.ref(share_network.id),
        )
    return parse_pool(
        share_network.flat_network_ip_pool,
        subnet=share_network.flat_network_subnet,
        gateway=share_network.flat_network_gateway,
    )


def parse_subnet(text: str, field: str) -> IPNetwork:
    """Return the subnet of a CIDR such as ``10.0.0.0/24``.

    Raises :class:`~worker.errors.InvalidRequest` when it is not a CIDR, has host bits set, or
    cannot contain servers (multicast, loopback, link-local, unspecified).
    """
    network = _cidr(text, field)
    if _is_unusable(network):
        raise InvalidRequest(
            f"{network} cannot hold share servers: it contains unspecified, loopback, link-local, "
            f"multicast or reserved addresses; name a unicast subnet.",
            field=field,
        )
    return network


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Address of a server: a host and a port; ``port`` is None when not given."""

    host: str
    port: int | None


def parse_endpoint(text: str, field: str) -> Endpoint:
    """Parse ``host``, ``host:port``, ``[v6]`` or ``[v6]:port`` into host and port.

    Raises :class:`~worker.errors.InvalidRequest` for other text, and for an address that a server
    in a share network cannot have (loopback, multicast and the like).
    """
    host, port = _host_and_port(text, field)
    if port is not None and not (_PORT.fullmatch(port) and 1 <= int(port) <= 65535):  # noqa: PLR2004 - 16 bits
        raise InvalidRequest(
            f"{text!r} has no port from 1 to 65535 after the host; write host or host:port.",
            field=field,
        )
    return Endpoint(host, None if port is None else int(port))


def _host_and_port(text: str, field: str) -> tuple[str, str | None]:
    if text.startswith("["):
        inner, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise InvalidRequest(f"{text!r} is not [address] or [address]:port.", field=field)
        address = server_address(inner, field)
        if address.version != 6:  # noqa: PLR2004 - only IPv6 has colons of its own
            raise InvalidRequest(
                f"{text!r} has an address in brackets that is not IPv6; leave them out.",
                field=field,
            )
        return str(address), rest[1:] if rest else None
    if text.count(":") > 1:
        raise InvalidRequest(
            f"{text!r} looks like an IPv6 address; write it in brackets, as in [fd00::1]:547.",
            field=field,
        )
    host, colon, port = text.partition(":")
    if host.rpartition(".")[2].isdigit():
        # A name never ends in a number (RFC 1123), so this was meant as an address.
        host = str(server_address(host, field))
    else:
        host_name(host, field)
    return host, port if colon else None


def host_name(text: str, field: str) -> str:
    """Return a DNS name unchanged; raise like :func:`server_address` for other text."""
    if len(text) > _LONGEST_NAME or not all(map(_LABEL.fullmatch, text.split("."))):
        raise InvalidRequest(f"{text!r} is neither a host name nor an IP address.", field=field)
    return text


def server_address(text: str, field: str) -> IPAddress:
    """Parse an address that a server in a share network can have.

    Raises :class:`~worker.errors.InvalidRequest` for other addresses, and for other text.
    """
    # Four numbers or colons: netaddr would take "7" for 0.0.0.7.
    if ":" not in text and text.count(".") != 3:  # noqa: PLR2004 - as the comment says
        raise InvalidRequest(f"{text!r} is not an IP address such as 10.0.0.7.", field=field)
    address = _address(text, field)
    if _is_unusable(IPNetwork(address)):
        raise InvalidRequest(
            f"{address} cannot be a server's: it is an unspecified, loopback, link-local, "
            f"multicast or reserved address; name a unicast address.",
            field=field,
        )
    return address


def network_info(
    pool: Pool, addresses: Sequence[str], *, attributes: dict[str, str] | None = None
) -> NetworkInfo:
    """Return the network of a share server that has these addresses of the pool."""
    return NetworkInfo(
        cidr=str(pool.subnet),
        netmask=str(pool.subnet.netmask),
        prefix_length=pool.subnet.prefixlen,
        ip_version=pool.ip_version,
        broadcast=str(pool.subnet.broadcast) if _has_broadcast(pool.subnet) else None,
        gateway=str(pool.gateway) if pool.gateway is not None else None,
        addresses=tuple(addresses),
        attributes=attributes or {},
    )


def _is_unusable(network: IPNetwork) -> bool:
    return any(
        network.first <= last and first <= network.last
        for first, last in _NO_SERVERS[network.version]
    )


def _has_broadcast(network: IPNetwork) -> bool:
    return network.version == 4 and network.prefixlen < 31  # noqa: PLR2004 - RFC 3021


def _special(network: IPNetwork) -> Iterator[Range]:
    """Return the network and broadcast address (IPv6: the subnet-router anycast address)."""
    # RFC 3021 (/31), RFC 6164 (/127): both addresses of a point-to-point link are hosts'.
    if network.size > 2:  # noqa: PLR2004 - RFC 3021, RFC 6164
        yield network.first, network.first
    if _has_broadcast(network):
        yield network.last, network.last


def _subnet(entries: Sequence[str], subnet: str | None, fields: FieldNames) -> IPNetwork:
    if not entries:
        raise InvalidRequest(
            "The pool is empty; name CIDRs, addresses or first-last ranges.", field=fields.pool
        )
    if subnet is not None:
        return parse_subnet(subnet, fields.subnet)
    if len(entries) == 1 and "/" in entries[0]:
        return parse_subnet(entries[0], fields.pool)
    raise InvalidRequest(
        f"{fields.subnet} is missing; it may be left out only when {fields.pool} is exactly one "
        f"CIDR.",
        field=fields.subnet,
    )


def _gateway(text: str, network: IPNetwork, field: str) -> IPAddress:
    gateway = _address(text, field)
    if gateway not in network:
        raise InvalidRequest(
            f"The gateway {gateway} is outside the subnet {network}; name one inside.", field=field
        )
    if any(first == int(gateway) for first, _ in _special(network)):
        raise InvalidRequest(
            f"The gateway {gateway} is the network or broadcast address of {network}; name "
            f"another.",
            field=field,
        )
    return gateway


def _spans(entries: Sequence[str], network: IPNetwork, field: str) -> Iterator[tuple[str, Range]]:
    """Yield each entry with its range; refuse a range that leaves the subnet."""
    for entry in entries:
        text = entry.strip()
        if "/" in text:
            cidr = _cidr(text, field)
            version, span = cidr.version, (cidr.first, cidr.last)
        elif "-" in text:
            low, high = (_address(part.strip(), field) for part in _ends(text, field))
            if low.version != high.version or high < low:
                raise InvalidRequest(
                    f"The range {text} does not run from a lower to a higher address.", field=field
                )
            version, span = low.version, (int(low), int(high))
        else:
            address = _address(text, field)
            version, span = address.version, (int(address), int(address))
        if version != network.version or span[0] < network.first or span[1] > network.last:
            raise InvalidRequest(
                f"{text} is not inside the subnet {network}; leave it out or correct the subnet.",
                field=field,
            )
        yield text, span


def _ends(text: str, field: str) -> tuple[str, str]:
    first, _, last = text.partition("-")
    if "-" in last:
        raise InvalidRequest(f"{text!r} is not a range; write first-last.", field=field)
    return first, last


def _cidr(text: str, field: str) -> IPNetwork:
    # netaddr also takes "/255.255.255.0"; one way to write a subnet is enough.
    if not _CIDR.fullmatch(text):
        raise InvalidRequest(f"{text!r} is not a CIDR such as 10.0.0.0/24.", field=field)
    try:
        network = IPNetwork(text)
    except (AddrFormatError, ValueError) as error:
        raise InvalidRequest(f"{text!r} is not a CIDR such as 10.0.0.0/24.", field=field) from error
    if network.ip != network.network:
        raise InvalidRequest(
            f"{text} has host bits set; write {network.cidr} for the subnet or {network.ip} for "
            f"the one address.",
            field=field,
        )
    return network


def _address(text: str, field: str) -> IPAddress:
    try:
        return IPAddress(text)
    except (AddrFormatError, ValueError) as error:
        raise InvalidRequest(
            f"{text!r} is not an IP address such as 10.0.0.7.", field=field
        ) from error


def _disjoint(spans: Iterable[tuple[str, Range]], field: str) -> list[Range]:
    """Return the ranges, lowest first; refuse addresses that are named twice."""
    ordered = sorted(spans, key=lambda item: item[1])
    for (text, span), (next_text, next_span) in pairwise(ordered):
        if span == next_span:
            raise InvalidRequest(f"{next_text} is named twice; name it once.", field=field)
        if next_span[0] <= span[1]:
            raise InvalidRequest(
                f"{text} and {next_text} overlap; name every address once.", field=field
            )
    return _merged(span for _, span in ordered)


def _merged(ranges: Iterable[Range]) -> list[Range]:
    """Return the ranges, lowest first, with adjacent and overlapping ones merged."""
    merged: list[Range] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def _without(ranges: Iterable[Range], holes: Sequence[Range]) -> Iterator[Range]:
    """Yield the ranges without the holes; both must be disjoint, lowest first."""
    for first, last in ranges:
        start = first
        at = max(bisect_right(holes, (first, first)) - 1, 0)
        for hole_first, hole_last in holes[at:]:
            if hole_first > last:
                break
            if start < hole_first:
                yield start, hole_first - 1
            start = max(start, hole_last + 1)
        if start <= last:
            yield start, last


def _bounds(*cidrs: str) -> tuple[Range, ...]:
    return tuple((network.first, network.last) for network in map(IPNetwork, cidrs))


# IANA's special-purpose address registries: addresses that a server cannot have.
_NO_SERVERS: Final = {
    4: _bounds("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"),
    6: _bounds("::/127", "::ffff:0:0/96", "fe80::/10", "ff00::/8"),
}

UNREADABLE_PREFIXES: Final = range(100, 120)
"""IPv6 prefix lengths that an access rule cannot have: nfs-ganesha 4.3 reads only two digits of a
prefix length; networks smaller than these are written as single addresses (256 at most)."""

_NO_CLIENTS: Final = (
    (IPNetwork("127.0.0.0/8"), "a loopback address"),
    (IPNetwork("::1/128"), "a loopback address"),
    (IPNetwork("0.0.0.0/8"), "no address of a client"),
    (IPNetwork("::/128"), "no address of a client"),
    (IPNetwork("224.0.0.0/4"), "a multicast address"),
    (IPNetwork("ff00::/8"), "a multicast address"),
    (IPNetwork("240.0.0.0/4"), "a reserved or broadcast address"),
)
_MAPPED: Final = IPNetwork("::ffff:0:0/96")


def client_network(text: str) -> IPNetwork:
    """Parse the client of an access rule: an address, or a CIDR without host bits.

    An IPv4-mapped IPv6 address becomes the IPv4 address, which is how the server sees such a
    client. Raises :class:`ValueError` for a client that could not be enforced or would never
    match; its text completes a sentence that begins with the client.
    """
    try:
        network = IPNetwork(text)
    except (AddrFormatError, ValueError) as error:
        raise ValueError("is neither an IP address nor a CIDR such as 10.0.0.0/24") from error
    mask = text.partition("/")[2]
    if mask and not mask.isdigit() and not IPAddress(mask).is_netmask():
        raise ValueError(f"has a wildcard mask; did you mean {network.cidr}?")
    if network.ip != network.network:
        raise ValueError(f"has host bits set; did you mean {network.cidr}?")
    if network in _MAPPED:
        length = network.prefixlen - _MAPPED.prefixlen
        network = IPNetwork(f"{network.ip.ipv4()}/{length}")
    for never, reason in _NO_CLIENTS:
        if network in never:
            raise ValueError(f"is {reason}, from which nobody mounts; name the client's own")
    if network.version == 6 and network.prefixlen in UNREADABLE_PREFIXES:  # noqa: PLR2004 - IPv6
        raise ValueError(
            "has a prefix from /100 to /119, which the NFS server cannot read; name a /99 or "
            "shorter, or several of /120 and longer"
        )
    return network
