"""DHCP on the wire, and what is made of an answer; a real server is asked in tests/contract."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import Fatal
from worker.systems.network.dhcp import DhcpServer, Lease, Relay
from worker.systems.network.dhcp_messages import Answer, Kind, Option, client_of, decode, encode

CLIENT = client_of("8f6c2f0e-51a7-4f0e-9d51-0f1c8f7f4f55", 1)
RELAY = IPv4Address("10.77.0.1")
ADDRESS = IPv4Address("10.77.0.100")
SERVER = DhcpServer("10.66.0.1", 67, Relay(None, None, 1.0), "share_server s", lambda: None)
MASK = {Option.SUBNET_MASK: bytes((255, 255, 255, 0)), Option.SERVER_ID: bytes((10, 66, 0, 1))}


def datagram(options: bytes, *, sname: bytes = b"", file: bytes = b"") -> bytes:
    """A server's answer, put together by hand: RFC 2131 figure 1."""
    return (
        struct.pack("!BBBBIHH", 2, 1, 6, 0, 0xCAFE, 0, 0)
        + bytes(4)
        + ADDRESS.packed
        + bytes(4)
        + RELAY.packed
        + CLIENT.hardware.ljust(16, b"\0")
        + sname.ljust(64, b"\0")
        + file.ljust(128, b"\0")
        + bytes((0x63, 0x82, 0x53, 0x63))
        + options
    )


def test_a_question_has_the_layout_of_the_rfc() -> None:
    message = encode(Kind.REQUEST, 0xCAFE, RELAY, CLIENT, requested=ADDRESS, server_id=RELAY)
    assert len(message) >= 300
    assert message[:4] == bytes((1, 1, 6, 1))
    assert message[4:8] == bytes((0, 0, 0xCA, 0xFE))
    assert message[24:28] == RELAY.packed
    assert message[28:34].hex(":") == CLIENT.mac
    assert message[236:240] == bytes((0x63, 0x82, 0x53, 0x63))
    assert bytes((53, 1, 3)) in message
    assert bytes((50, 4)) + ADDRESS.packed in message
    assert bytes((54, 4)) + RELAY.packed in message


def test_each_port_of_each_server_has_a_mac_of_its_own_for_ever() -> None:
    clients = [client_of(f"server-{n}", port) for n in range(1000) for port in range(2)]
    assert len({client.mac for client in clients}) == 2000
    assert len({client.identifier for client in clients}) == 2000
    assert all(client.hardware[0] & 3 == 2 for client in clients), "local and unicast"
    assert client_of("server-7", 1) == clients[15]


def test_options_in_pieces_and_in_the_other_fields() -> None:
    answer = decode(
        datagram(
            bytes((0, 53, 1, 5, 52, 1, 3, 121, 2, 0, 10, 255)),
            file=bytes((121, 3, 77, 0, 1, 51, 4, 0, 0, 0, 120, 255)),
            sname=bytes((58, 4, 0, 0, 0, 60, 255)),
        )
    )
    assert answer is not None
    assert (answer.kind, answer.xid, answer.address) == (Kind.ACK, 0xCAFE, ADDRESS)
    assert answer.hardware == CLIENT.hardware
    assert answer.number(Option.LEASE_TIME) == 120
    assert answer.number(Option.RENEWAL_TIME) == 60
    assert answer.routes == ((IPv4Network("0.0.0.0/0"), RELAY),)


@given(st.binary(max_size=400))
def test_nothing_that_arrives_is_too_strange(options: bytes) -> None:
    decode(options)
    answer = decode(datagram(options))
    assert answer is None or answer.routes is None or isinstance(answer.routes, tuple)
    requests_own = encode(Kind.DISCOVER, 1, RELAY, CLIENT)
    assert decode(requests_own) is None, "a question is no answer"


def read(options: dict[int, bytes]) -> Lease:
    return SERVER._read(Answer(Kind.ACK, 1, CLIENT.hardware, ADDRESS, options), 2.0)


@pytest.mark.parametrize(
    ("options", "seconds", "renew_after"),
    [
        ({Option.LEASE_TIME: (3600).to_bytes(4)}, 3598, 1798),
        (
            {Option.LEASE_TIME: (3600).to_bytes(4), Option.RENEWAL_TIME: bytes(3) + b"\x3c"},
            3598,
            58,
        ),
        ({Option.LEASE_TIME: (60).to_bytes(4), Option.RENEWAL_TIME: (90).to_bytes(4)}, 58, 58),
        ({Option.LEASE_TIME: b"\xff" * 4}, None, None),
    ],
    ids=["half", "as the server says", "not later than its end", "for ever"],
)
def test_when_a_lease_is_renewed(
    options: dict[int, bytes], seconds: float | None, renew_after: float | None
) -> None:
    lease = read({**MASK, **options})
    assert (lease.seconds, lease.renew_after) == (seconds, renew_after)


def test_classless_routes_replace_the_router() -> None:
    hour = {**MASK, Option.LEASE_TIME: (3600).to_bytes(4), Option.ROUTER: bytes((10, 77, 0, 9))}
    assert (read(hour).gateway, read(hour).routes) == ("10.77.0.9", ())
    on_link = bytes((24, 10, 78, 0)) + bytes(4)
    routed = bytes((12, 172, 16, 10, 77, 0, 254))
    lease = read({**hour, Option.ROUTES: on_link + routed})
    assert (lease.gateway, lease.routes) == (None, (("172.16.0.0/12", "10.77.0.254"),))


@pytest.mark.parametrize(
    "missing", [Option.SUBNET_MASK, Option.LEASE_TIME, Option.SERVER_ID], ids=lambda o: o.name
)
def test_an_answer_that_cannot_be_used(missing: Option) -> None:
    options = {**MASK, Option.LEASE_TIME: (3600).to_bytes(4)}
    del options[missing]
    with pytest.raises(Fatal, match=f"option {int(missing)}"):
        read(options)


def test_an_impossible_mask() -> None:
    with pytest.raises(Fatal, match="subnet mask"):
        read({**MASK, Option.LEASE_TIME: bytes(4), Option.SUBNET_MASK: bytes((255, 0, 255, 0))})
