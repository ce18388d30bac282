"""DHCPv4 on the wire: the messages that a relay sends for a client, and what is read of answers.

Layout and option numbers: RFC 2131 §2, RFC 2132; long options RFC 3396; routes RFC 3442.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network
from typing import Final

SERVER_PORT: Final = 67
"""Where servers and relays listen."""
NEVER: Final = 0xFFFFFFFF
"""A lease time of this many seconds does not end."""
UNSET: Final = IPv4Address(0)
"""What a header has in the place of an address that there is not."""

_HEADER: Final = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s4s")
_COOKIE: Final = bytes((99, 130, 83, 99))
_BOOT_REQUEST, _BOOT_REPLY, _ETHERNET = 1, 2, 1
_SHORTEST: Final = 300  # a BOOTP relay may drop what is shorter (RFC 1542 §2.1)


class Kind(IntEnum):
    """What a message is (option 53)."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    ACK = 5
    NAK = 6
    RELEASE = 7
    INFORM = 8


class Option(IntEnum):
    """The options that are sent or read."""

    SUBNET_MASK = 1
    ROUTER = 3
    INTERFACE_MTU = 26
    REQUESTED_ADDRESS = 50
    LEASE_TIME = 51
    OVERLOAD = 52
    KIND = 53
    SERVER_ID = 54
    PARAMETERS = 55
    RENEWAL_TIME = 58
    CLIENT_ID = 61
    ROUTES = 121


_PAD, _END = 0, 255
_WANTED: Final = bytes(
    (
        *(Option.SUBNET_MASK, Option.ROUTES, Option.ROUTER, Option.INTERFACE_MTU),
        *(Option.LEASE_TIME, Option.SERVER_ID, Option.RENEWAL_TIME),
    )
)


@dataclass(frozen=True, slots=True)
class DhcpClient:
    """Whom an address is for: its MAC address and its client identifier (option 61)."""

    mac: str
    identifier: str

    @property
    def hardware(self) -> bytes:
        """The MAC address as bytes."""
        return bytes.fromhex(self.mac.replace(":", ""))


def client_of(owner: str, number: int) -> DhcpClient:
    """The client that port ``number`` of ``owner`` is: the same at every call, nobody else's.

    The MAC address is a locally administered unicast one (IEEE 802: second lowest bit of the
    first byte set, lowest clear), so that no vendor's hardware has it.
    """
    digest = bytearray(hashlib.sha256(f"{owner}/{number}".encode()).digest()[:6])
    digest[0] = digest[0] & 0b11111100 | 0b00000010
    return DhcpClient(digest.hex(":"), f"{owner}/{number}")


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's message."""

    kind: Kind
    xid: int
    hardware: bytes
    address: IPv4Address
    options: Mapping[int, bytes]

    def number(self, option: Option) -> int | None:
        """An option that is a number; None without it."""
        content = self.options.get(option)
        return None if content is None else int.from_bytes(content, "big")

    def first_address(self, option: Option) -> IPv4Address | None:
        """The first address of an option; None without one."""
        content = self.options.get(option, b"")
        return IPv4Address(content[:4]) if len(content) >= 4 else None  # noqa: PLR2004 - IPv4

    @property
    def routes(self) -> tuple[tuple[IPv4Network, IPv4Address], ...] | None:
        """Destinations and next hops of option 121; None without it. The last may be cut off."""
        content = self.options.get(Option.ROUTES)
        return None if content is None else tuple(_routes(content))


def _routes(content: bytes) -> Iterator[tuple[IPv4Network, IPv4Address]]:
    at = 0
    while at < len(content):
        length = content[at]
        significant = (length + 7) // 8
        hop = at + 1 + significant
        if length > 32 or hop + 4 > len(content):  # noqa: PLR2004 - IPv4
            return
        destination = content[at + 1 : hop].ljust(4, b"\0")
        yield (
            IPv4Network((destination, length), strict=False),
            IPv4Address(content[hop : hop + 4]),
        )
        at = hop + 4


def encode(
    kind: Kind,
    xid: int,
    relay: IPv4Address,
    client: DhcpClient,
    *,
    holds: IPv4Address = UNSET,
    requested: IPv4Address | None = None,
    server_id: IPv4Address | None = None,
) -> bytes:
    """A message as a relay at ``relay`` passes it on; ``holds`` is the client's own address."""
    header = _HEADER.pack(
        *(_BOOT_REQUEST, _ETHERNET, 6, 1, xid, 0, 0),
        *(holds.packed, UNSET.packed, UNSET.packed, relay.packed),
        *(client.hardware, b"", b"", _COOKIE),
    )
    # Type 0: an identifier that is no hardware address (RFC 2132 §9.14).
    options = {Option.KIND: bytes((kind,)), Option.CLIENT_ID: b"\0" + client.identifier.encode()}
    if server_id is not None:
        options[Option.SERVER_ID] = server_id.packed
    if requested is not None:
        options[Option.REQUESTED_ADDRESS] = requested.packed
    if kind is not Kind.RELEASE:
        options[Option.PARAMETERS] = _WANTED
    written = b"".join(bytes((code, len(value))) + value for code, value in options.items())
    return (header + written + bytes((_END,))).ljust(_SHORTEST, b"\0")


def decode(datagram: bytes) -> Answer | None:
    """Read a server's message; None when it is none, or broken."""
    if len(datagram) < _HEADER.size:
        return None
    fields = _HEADER.unpack_from(datagram)
    if fields[0] != _BOOT_REPLY or fields[-1] != _COOKIE:
        return None
    options: dict[int, bytes] = {}
    _read_options(datagram[_HEADER.size :], options)
    overload = int.from_bytes(options.get(Option.OVERLOAD, b""), "big")
    if overload & 1:
        _read_options(fields[13], options)
    if overload & 2:
        _read_options(fields[12], options)
    kind = int.from_bytes(options.get(Option.KIND, b""), "big")
    if kind not in set(Kind):
        return None
    return Answer(Kind(kind), fields[4], fields[11][:6], IPv4Address(fields[8]), options)


def _read_options(content: bytes, options: dict[int, bytes]) -> None:
    """Add the options in ``content``; the parts of one that is repeated belong together."""
    at = 0
    while at < len(content) and content[at] != _END:
        if content[at] == _PAD:
            at += 1
            continue
        if at + 2 > len(content):
            return
        code, length = content[at], content[at + 1]
        options[code] = options.get(code, b"") + content[at + 2 : at + 2 + length]
        at += 2 + length
