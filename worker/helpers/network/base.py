"""The network helper's interface (docs/explanation/architecture.md)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, Protocol

from worker.model import (
    DhcpLease,
    DriverMode,
    Holding,
    NetworkInfo,
    NetworkKind,
    RequestContext,
    Segment,
    SegmentSource,
    ShareNetwork,
    ShareServer,
)
from worker.plugin import BackendContext, Options

NETWORK_DOMAIN: Final = "share_network:"
"""With a share network's id: the domain of addresses that it names itself. Deleting the share
network forgets it."""


class SegmentStore(Protocol):
    """Which share network has which segment, and which share servers are on it.

    A share network has one segment in a domain for as long as a share server holds it. A segment
    that nobody holds rests as addresses do; meanwhile its share network may have it back. The
    uniqueness of ids and of chosen subnets is a database constraint. Every call is a transaction
    of its own.
    """

    def take(
        self, source: SegmentSource, share_network_id: str, server_id: str, cidr: str | None
    ) -> Segment:
        """Put the server on its share network's segment, which is given one if it has none.

        ``cidr`` is the subnet that the share network names, if it does. Repeating the call returns
        the same. Raises :class:`~worker.errors.Fatal` (``network_failed``) when no id or subnet is
        left, and :class:`~worker.errors.NotReady` while another server is closing the segment.
        """

    def held(self, server_id: str) -> Segment | None:
        """Return the segment that the server is on."""

    def close(self, server_id: str) -> Segment | None:
        """Return the server's segment if nobody else is on it; then nobody else gets on any more.

        For helpers that dismantle something outside before they release the segment.
        """

    def release(self, server_id: str) -> None:
        """Take the server off its segment, which rests if it was the last; none is fine."""

    def holdings(self) -> Sequence[Holding]:
        """Return who is on which segment, of all domains."""


class LeaseStore(Protocol):
    """Which share server has which address from which DHCP server.

    Rows come first: an address is written down before the DHCP server is asked to lease it, so
    that whoever comes after a crash knows what to release. (Endpoint, address) is unique by a
    database constraint. Every call is a transaction of its own.
    """

    def held(self, server_id: str) -> tuple[DhcpLease, ...]:
        """Return what the share server has, or may have, by ordinal."""

    def offered(self, lease: DhcpLease) -> bool:
        """Write down what is going to be asked for, in place of an earlier row of that ordinal.

        False, and nothing is written, when another share server has the address.
        """

    def acknowledged(
        self, server_id: str, ordinal: int, *, seconds: float | None, renew_after: float | None
    ) -> None:
        """The DHCP server gave it, for so many seconds from now; None is for ever."""

    def close(self, server_id: str) -> tuple[DhcpLease, ...]:
        """As :meth:`held`, and from now on nobody renews them.

        Raises :class:`~worker.errors.NotReady` while a renewal is under way.
        """

    def release_failed(self, server_id: str) -> int:
        """Count an attempt to release that failed; return how many there were."""

    def remove(self, server_id: str) -> None:
        """Forget all that the share server had; nothing is fine."""

    def all(self) -> Sequence[DhcpLease]:
        """Return everybody's."""


class AddressStore(Protocol):
    """Who holds which address: rows in the database, handed to helpers that need them.

    Uniqueness of (domain, address) is a database constraint. A domain is the flat network that
    addresses must be unique on. Every call is a transaction of its own.
    """

    @property
    def segments(self) -> SegmentStore:
        """The part about segments."""

    @property
    def leases(self) -> LeaseStore:
        """The part about addresses of DHCP servers."""

    def held(self, domain: str, server_id: str) -> tuple[str, ...]:
        """Return the addresses that the share server holds, in the order they were taken."""

    def take(
        self,
        domain: str,
        ranges: Sequence[tuple[int, int]],
        ip_version: int,
        server_id: str,
        count: int,
    ) -> tuple[str, ...]:
        """Bring what the server holds up to ``count`` addresses and return all of them.

        ``ranges`` are inclusive (first, last) integers that may be given out, in order. Repeating
        the call returns the same addresses. Costs the same however full the ranges are.

        Raises :class:`~worker.errors.Fatal` (``addresses_exhausted``) when there are not enough,
        and :class:`~worker.errors.NotReady` when some rest and become free shortly; in both cases
        nothing was taken.
        """

    def release(self, server_id: str) -> None:
        """Give back all that the server holds in any domain; holding nothing is fine.

        A released address rests longer than a lease and the longest step before it is given out
        again, so that a worker that was stopped cannot use it beside its next holder.
        """

    def holdings(self) -> Sequence[Holding]:
        """Return who holds which address, of all domains."""


class Renewing(ABC):
    """Capability of a network helper whose allocations run out unless they are renewed."""

    @abstractmethod
    def renew_network(self, context: RequestContext, share_server: ShareServer) -> None:
        """Renew all that the share server holds; holding nothing is fine.

        Raises :class:`~worker.errors.Fatal` or :class:`~worker.errors.Retryable`; it is called
        again either way.
        """


class NetworkHelper(ABC):
    """Allocates and releases what a share server is reached by.

    Both calls may be repeated with the same arguments after any crash, and a thing that a dead
    attempt made is found and used, not made again. ``context.guard()`` comes before every
    changing call outside.
    """

    OptionsModel: ClassVar[type[Options]] = Options
    kinds: ClassVar[frozenset[NetworkKind]]
    """The share network kinds that it serves from the share network's own options."""
    modes: ClassVar[frozenset[DriverMode]]
    """The driver modes that it can be configured in."""
    has_own_addresses: bool = True
    """Whether the backend's options give it addresses, whatever the share network says. A flat
    backend serves share networks whose options it ignores from these."""
    host_bound: ClassVar[bool] = False
    """Whether it works only on the host that its backend names."""
    gives_ports: ClassVar[bool] = False
    """Whether what it allocates are ports of Neutron, with their ids."""

    def __init__(self, backend: BackendContext, options: Options, addresses: AddressStore) -> None:
        self.backend = backend
        self.options = options
        self.addresses = addresses

    @abstractmethod
    def allocate_network(
        self,
        context: RequestContext,
        share_server: ShareServer,
        share_network: ShareNetwork,
        amount_of_ports: int,
    ) -> NetworkInfo:
        """Allocate ``amount_of_ports`` addresses of one subnet for the share server.

        Raises :class:`~worker.errors.Fatal` or :class:`~worker.errors.Retryable`; what was made
        by then is found again by the next attempt or by :meth:`deallocate_network`.
        """

    @abstractmethod
    def deallocate_network(self, context: RequestContext, share_server: ShareServer) -> None:
        """Release all that the share server holds; holding nothing is fine."""


class AddressPools(ABC):
    """Capability of a network helper that knows how many addresses its backend's own pools have."""

    @abstractmethod
    def address_pools(self) -> Mapping[str, int]:
        """Return how many addresses may be given out in all, by address book domain."""
