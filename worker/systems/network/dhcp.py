"""DHCPv4 asked as a relay asks: addresses for machines that are not this one.

A relay passes a client's messages on from an address of its own (giaddr), port 67, and the server
answers there (RFC 2131 §4.1). Nobody need be in the client's broadcast domain, and the address
need not be on any interface. Port 67 of the relay's address is bound for one exchange at a time,
which is also what keeps the answers of several processes apart: the kernel lets only one have it.

A server that has no address left, or none for the relay's network, says nothing. Beside the
question a DHCPINFORM is sent, which a server that knows the relay's network answers without
giving an address away: so an exhausted pool can be told from a server that is not there.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Final

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

from worker.errors import ErrorCode, Fatal, Retryable, StepError
from worker.systems.network.dhcp_messages import (
    NEVER,
    SERVER_PORT,
    UNSET,
    Answer,
    DhcpClient,
    Kind,
    Option,
    decode,
    encode,
)

_WINDOWS: Final = 8
"""The first wait for an answer is this fraction of the deadline; each further one is double."""
_REFUSAL_SECONDS: Final = 0.1
"""How long a host may take to say that nothing listens on a port."""
_LARGEST: Final = 4096
_IP_RECVERR: Final = 11  # linux/in.h; Python has no name for it
_CLONE_NEWNET: Final = 0x40000000  # linux/sched.h; Python 3.11 has no name for it
_NAMESPACES: Final = "/run/netns"


class LeaseRefused(Retryable):
    """The server refused (NAK): it does not, or no longer, give this client this address."""

    code = ErrorCode.NETWORK_FAILED


@dataclass(frozen=True, slots=True)
class Relay:
    """Where questions are asked from.

    ``address`` is the giaddr; None is the address that this host reaches the server from.
    ``namespace`` is the network namespace that has it; None is the process's own. ``deadline``
    is how many seconds one question may take.
    """

    address: str | None
    namespace: str | None
    deadline: float


@dataclass(frozen=True, slots=True)
class Offer:
    """An address that the server would give."""

    address: str
    server_id: str


@dataclass(frozen=True, slots=True)
class Lease:
    """What the server gave; times are seconds from now, None is for ever."""

    address: str
    server_id: str
    subnet: IPv4Network
    gateway: str | None
    routes: tuple[tuple[str, str], ...]
    mtu: int | None
    seconds: float | None
    renew_after: float | None


@dataclass(frozen=True, slots=True)
class DhcpServer:
    """A DHCP server as one relay asks it on behalf of one object (``about``, for sentences).

    ``guard`` is called before whatever makes the server change something.
    """

    host: str
    port: int
    relay: Relay
    about: str
    guard: Callable[[], None]

    def discover(self, client: DhcpClient, wanted: str | None = None) -> Offer:
        """Ask for an offer, of the address ``wanted`` if it can be had.

        Raises :class:`~worker.errors.Fatal` (``addresses_exhausted``) when the server is there
        and offers nothing, :class:`~worker.errors.Retryable` when nothing is heard of it.
        """
        requested = None if wanted is None else IPv4Address(wanted)
        with self._translated():
            answer, lives = self._ask(Kind.DISCOVER, {Kind.OFFER}, client, requested=requested)
        if answer is None:
            raise self._exhausted() if lives else self._silent("an address", exhausted=True)
        return Offer(str(answer.address), str(self._server_id(answer)))

    def request(self, client: DhcpClient, offer: Offer) -> Lease:
        """Take what was offered; :class:`LeaseRefused` when it is gone meanwhile."""
        return self._lease(
            client,
            f"the address {offer.address} that it had offered",
            requested=IPv4Address(offer.address),
            server_id=IPv4Address(offer.server_id),
        )

    def renew(self, client: DhcpClient, address: str) -> Lease:
        """Prolong a lease; :class:`LeaseRefused` when the server does not know it any more."""
        return self._lease(
            client, f"a longer lease of {address}", holds=IPv4Address(address), requested=None
        )

    def release(self, leases: Iterable[tuple[DhcpClient, Offer]]) -> None:
        """Give leases back. A release is never answered (RFC 2131 §4.4.6).

        Raises :class:`~worker.errors.Retryable` where it can be seen that it did not arrive.
        """
        with self._translated(), self._bound(time.monotonic() + self.relay.deadline) as bound:
            relay, server, link = bound
            self.guard()
            for client, held in leases:
                message = encode(
                    *(Kind.RELEASE, secrets.randbits(32), relay, client),
                    holds=IPv4Address(held.address),
                    server_id=IPv4Address(held.server_id),
                )
                link.sendto(message, server)
            for _ in _datagrams(link, time.monotonic() + _REFUSAL_SECONDS):
                pass  # an answer to another question that came late

    def _lease(
        self,
        client: DhcpClient,
        what: str,
        *,
        requested: IPv4Address | None,
        holds: IPv4Address = UNSET,
        server_id: IPv4Address | None = None,
    ) -> Lease:
        began = time.monotonic()
        with self._translated():
            answer, _ = self._ask(
                *(Kind.REQUEST, {Kind.ACK, Kind.NAK}, client),
                holds=holds,
                requested=requested,
                server_id=server_id,
            )
        if answer is None:
            raise self._silent(what)
        if answer.kind is Kind.NAK:
            raise LeaseRefused(
                f"The DHCP server {self} refused (NAK) {what}; it may have been restarted with "
                f"other addresses. See its log for {client.mac}.",
                object=self.about,
            )
        return self._read(answer, time.monotonic() - began)

    def _ask(
        self,
        kind: Kind,
        accepted: set[Kind],
        client: DhcpClient,
        *,
        holds: IPv4Address = UNSET,
        requested: IPv4Address | None,
        server_id: IPv4Address | None = None,
    ) -> tuple[Answer | None, bool]:
        """Ask until the deadline; the answer, and whether the server is known to live."""
        ends = time.monotonic() + self.relay.deadline
        window = self.relay.deadline / _WINDOWS
        xid, probe_xid = secrets.randbits(32), secrets.randbits(32)
        lives = False
        repeated = False
        while time.monotonic() < ends:
            # Not held while nobody answers: other questions, of other servers, go on meanwhile.
            with self._bound(ends) as (relay, server, link):
                self.guard()
                message = encode(
                    *(kind, xid, relay, client),
                    holds=holds,
                    requested=requested,
                    server_id=server_id,
                )
                link.sendto(message, server)
                if repeated:
                    link.sendto(encode(Kind.INFORM, probe_xid, relay, client, holds=relay), server)
                for datagram in _datagrams(link, min(time.monotonic() + window, ends)):
                    answer = decode(datagram)
                    if answer is None or answer.hardware != client.hardware:
                        continue
                    if answer.xid == xid and answer.kind in accepted:
                        return answer, True
                    lives = lives or answer.xid == probe_xid
            window *= 2
            repeated = True
        return None, lives

    @contextmanager
    def _bound(self, ends: float) -> Iterator[tuple[IPv4Address, tuple[str, int], socket.socket]]:
        """The relay's address and the server's, and a socket on port 67 of the former."""
        server = _resolved(self.host, self.port)
        with _udp_socket(self.relay.namespace) as link:
            own = self.relay.address or _own_address(self.relay.namespace, server)
            link.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
            for attempt in Retrying(
                retry=retry_if_exception(_is_taken),
                stop=stop_after_delay(max(ends - time.monotonic(), 0)),
                wait=wait_random(0.001, 0.02),
                reraise=True,
            ):
                with attempt:
                    link.bind((own, SERVER_PORT))
            yield IPv4Address(own), server, link

    def _server_id(self, answer: Answer) -> IPv4Address:
        server_id = answer.first_address(Option.SERVER_ID)
        if server_id is None:
            raise self._unusable("does not say which server it is from (option 54)")
        return server_id

    def _read(self, answer: Answer, age: float) -> Lease:
        mask = answer.first_address(Option.SUBNET_MASK)
        seconds = answer.number(Option.LEASE_TIME)
        if mask is None or seconds is None:
            raise self._unusable("has no subnet mask (option 1) or no lease time (option 51)")
        try:
            subnet = IPv4Interface(f"{answer.address}/{mask}").network
        except ValueError as error:
            raise self._unusable(f"has an impossible subnet mask {mask}") from error
        half = answer.number(Option.RENEWAL_TIME) or seconds // 2
        for_ever = seconds == NEVER
        gateway, routes = _ways(answer)
        return Lease(
            address=str(answer.address),
            server_id=str(self._server_id(answer)),
            subnet=subnet,
            gateway=gateway,
            routes=routes,
            mtu=answer.number(Option.INTERFACE_MTU),
            seconds=None if for_ever else seconds - age,
            renew_after=None if for_ever else min(half, seconds) - age,
        )

    def _unusable(self, why: str) -> Fatal:
        return Fatal(
            f"The answer of the DHCP server {self} {why}; correct the server's configuration.",
            object=self.about,
            code=ErrorCode.NETWORK_FAILED,
        )

    def _exhausted(self) -> Fatal:
        return Fatal(
            f"The DHCP server {self} is there and offered no address to {self.about} within "
            f"{self.relay.deadline:g} s: it has none left for {self._from}; add addresses there "
            f"or delete shares.",
            object=self.about,
            code=ErrorCode.ADDRESSES_EXHAUSTED,
        )

    def _silent(self, what: str, *, exhausted: bool = False) -> Retryable:
        also = ", or has none left (which is answered by silence as well)" if exhausted else ""
        return Retryable(
            f"The DHCP server {self} was asked for {what} for {self.about} and did not answer "
            f"within {self.relay.deadline:g} s: it is down, cannot be reached, has no addresses "
            f"for {self._from}{also}. Look at its log.",
            object=self.about,
        )

    @property
    def _from(self) -> str:
        return f"relay {self.relay.address}" if self.relay.address else "this host as the relay"

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> StepError:
        relay = self.relay
        if isinstance(error, socket.gaierror):
            sentence = f"The name of the DHCP server {self} could not be resolved"
        elif error.errno == errno.EADDRINUSE:
            sentence = (
                f"Port {SERVER_PORT} of {self._from} stayed in use for {relay.deadline:g} s, by "
                f"other questions or by another DHCP program on this host"
            )
        elif error.errno in _SETTINGS:
            return Fatal(
                f"The DHCP server {self} cannot be asked from {self._from}: "
                f"{_SETTINGS[error.errno]}.",
                object=self.about,
                code=ErrorCode.CONFIGURATION,
            )
        else:
            sentence = f"The DHCP server {self} cannot be reached ({error.strerror})"
        return Retryable(f"{sentence}; {self.about} was not served.", object=self.about)


_SETTINGS: Final = {
    errno.EADDRNOTAVAIL: "this host does not have that address; correct dhcp_relay_address",
    errno.EACCES: f"port {SERVER_PORT} needs root or CAP_NET_BIND_SERVICE",
    errno.EPERM: "dhcp_namespace needs root or CAP_SYS_ADMIN",
    errno.ENOENT: f"there is no namespace of that name in {_NAMESPACES}; correct dhcp_namespace",
}


def _ways(answer: Answer) -> tuple[str | None, tuple[tuple[str, str], ...]]:
    """The gateway and the other routes; classless routes replace the router (RFC 3442)."""
    if answer.routes is None:
        router = answer.first_address(Option.ROUTER)
        return (None if router is None else str(router)), ()
    gateway = next((str(hop) for to, hop in answer.routes if to.prefixlen == 0), None)
    # Next hop 0.0.0.0: on the link itself, which needs no route of ours.
    routes = [(str(to), str(hop)) for to, hop in answer.routes if to.prefixlen and int(hop)]
    return gateway, tuple(routes)


def _datagrams(link: socket.socket, until: float) -> Iterator[bytes]:
    """What arrives until then (monotonic); an OSError that a router or host reported is raised."""
    while (remaining := until - time.monotonic()) > 0:
        link.settimeout(remaining)
        try:
            yield link.recv(_LARGEST)
        except TimeoutError:
            return


def _is_taken(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EADDRINUSE


def _resolved(host: str, port: int) -> tuple[str, int]:
    found = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_DGRAM)
    address = found[0][4]
    return str(address[0]), port


def _own_address(namespace: str | None, server: tuple[str, int]) -> str:
    """The address that packets to the server leave with; nothing is sent."""
    with _udp_socket(namespace) as probe:
        probe.connect(server)
        return str(probe.getsockname()[0])


def _udp_socket(namespace: str | None) -> socket.socket:
    if namespace is None:
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    # A namespace is entered by a thread; this one ends with it, the socket stays in it.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_socket_in, namespace).result()


def _socket_in(namespace: str) -> socket.socket:
    libc = ctypes.CDLL(None, use_errno=True)
    handle = os.open(f"{_NAMESPACES}/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(handle, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(handle)
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
