"""The interface of a network helper (docs/explanation/architecture.md)."""

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
"""Prefix of the domain of addresses that a share network names itself; the share network's id
follows. Deleting the share network deletes the domain's rows."""


class SegmentStore(Protocol):
    """Store of segments: which share network has which, and which share servers use it.

    A share network has one segment in a domain for as long as a share server holds it. A released
    segment rests, like a released address, before another share network can get it; its own share
    network may take it back at once. A database constraint keeps ids and chosen subnets unique.
    Every call is a separate transaction.
    """

    def take(
        self, source: SegmentSource, share_network_id: str, server_id: str, cidr: str | None
    ) -> Segment:
        """Assign the server to its share network's segment; allocate one if there is none.

        ``cidr`` is the subnet that the share network names, or None. A repeated call returns the
        same segment. Raises :class:`~worker.errors.Fatal` (``network_failed``) when no id or
        subnet is free, and :class:`~worker.errors.NotReady` while another server is closing the
        segment.
        """

    def held(self, server_id: str) -> Segment | None:
        """Return the server's segment, or None."""

    def close(self, server_id: str) -> Segment | None:
        """Return the server's segment if no other server uses it, and keep other servers out.

        For helpers that delete an external network before they release the segment.
        """

    def release(self, server_id: str) -> None:
        """Release the server's segment, if any; the segment rests once no server uses it."""

    def holdings(self) -> Sequence[Holding]:
        """Return every server's segment, in all domains."""


class LeaseStore(Protocol):
    """Store of DHCP leases: which share server has which address from which DHCP server.

    An address is recorded before the DHCP server is asked to lease it, so that the addresses to
    release are known after a crash. A database constraint keeps (endpoint, address) unique. Every
    call is a separate transaction.
    """

    def held(self, server_id: str) -> tuple[DhcpLease, ...]:
        """Return the leases that the share server has or may have, by ordinal."""

    def offered(self, lease: DhcpLease) -> bool:
        """Record an address about to be requested, replacing the earlier row of that ordinal.

        Returns False and records nothing when another share server has the address.
        """

    def acknowledged(
        self, server_id: str, ordinal: int, *, seconds: float | None, renew_after: float | None
    ) -> None:
        """Record that the DHCP server granted the lease, for so many seconds (None: for ever)."""

    def close(self, server_id: str) -> tuple[DhcpLease, ...]:
        """Return the leases as :meth:`held` does, and prevent further renewals of them.

        Raises :class:`~worker.errors.NotReady` while a renewal is under way.
        """

    def release_failed(self, server_id: str) -> int:
        """Count a failed attempt to release the leases; return the number of such attempts."""

    def remove(self, server_id: str) -> None:
        """Delete the records of all the share server's leases, if any."""

    def all(self) -> Sequence[DhcpLease]:
        """Return the leases of all share servers."""


class AddressStore(Protocol):
    """Store of addresses: which share server holds which, as rows in the database.

    A domain is the network on which addresses must be unique; a database constraint keeps
    (domain, address) unique. Every call is a separate transaction.
    """

    @property
    def segments(self) -> SegmentStore:
        """The store of segments."""

    @property
    def leases(self) -> LeaseStore:
        """The store of DHCP leases."""

    def held(self, domain: str, server_id: str) -> tuple[str, ...]:
        """Return the addresses that the share server holds, in the order of allocation."""

    def take(
        self,
        domain: str,
        ranges: Sequence[tuple[int, int]],
        ip_version: int,
        server_id: str,
        count: int,
    ) -> tuple[str, ...]:
        """Allocate addresses until the server holds ``count``, and return all of them.

        ``ranges`` are the allocatable addresses: inclusive (first, last) integers in ascending
        order. A repeated call returns the same addresses. The cost does not depend on how many
        addresses are in use.

        Raises :class:`~worker.errors.Fatal` (``addresses_exhausted``) when too few are free, and
        :class:`~worker.errors.NotReady` when resting addresses become free shortly; in both cases
        nothing is allocated.
        """

    def release(self, server_id: str) -> None:
        """Release all addresses that the server holds, in every domain; none is fine.

        A released address rests longer than a lease and the longest step before it is allocated
        again, so that a worker that was suspended cannot use it at the same time as its next
        holder.
        """

    def holdings(self) -> Sequence[Holding]:
        """Return every server's addresses, in all domains."""


class Renewing(ABC):
    """Capability of a network helper that must renew its allocations before they expire."""

    @abstractmethod
    def renew_network(self, context: RequestContext, share_server: ShareServer) -> None:
        """Renew all allocations of the share server, if any.

        Raises :class:`~worker.errors.Fatal` or :class:`~worker.errors.Retryable`; the engine calls
        it again in both cases.
        """


class NetworkHelper(ABC):
    """Allocates and releases the network addresses (and ports, networks) of share servers.

    Both methods may be called again with the same arguments after a crash at any point. What an
    earlier attempt created is found and used, not created again. ``context.guard()`` is called
    before every changing call to the external system.
    """

    OptionsModel: ClassVar[type[Options]] = Options
    kinds: ClassVar[frozenset[NetworkKind]]
    """The kinds of share network that the helper serves from the share network's own options."""
    modes: ClassVar[frozenset[DriverMode]]
    """The driver modes in which the helper can be used."""
    has_own_addresses: bool = True
    """Whether the backend's options provide addresses. A flat backend uses these for the share
    networks whose own options it ignores."""
    host_bound: ClassVar[bool] = False
    """Whether the helper works only on one host, so that the backend must name it."""
    gives_ports: ClassVar[bool] = False
    """Whether the helper allocates Neutron ports and returns their ids."""

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

        Raises :class:`~worker.errors.Fatal` or :class:`~worker.errors.Retryable`; the next attempt
        or :meth:`deallocate_network` finds what was allocated before the error.
        """

    @abstractmethod
    def deallocate_network(self, context: RequestContext, share_server: ShareServer) -> None:
        """Release all allocations of the share server, if any."""


class AddressPools(ABC):
    """Capability of a network helper that knows the size of its backend's address pools."""

    @abstractmethod
    def address_pools(self) -> Mapping[str, int]:
        """Return the number of allocatable addresses of each domain, free or in use."""
