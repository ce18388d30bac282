"""The network helper's interface (DESIGN §4; the specification's ``network_helper``)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

from worker.model import (
    DriverMode,
    NetworkInfo,
    NetworkKind,
    RequestContext,
    ShareNetwork,
    ShareServer,
)
from worker.plugin import Options, Setting


class AddressBook(Protocol):
    """Who holds which address: rows in the database, handed to helpers that need them.

    Uniqueness of (domain, address) is a database constraint. A domain is the flat network that
    addresses must be unique on. Every call is a transaction of its own.
    """

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

    def __init__(self, setting: Setting, options: Options, addresses: AddressBook) -> None:
        self.setting = setting
        self.options = options
        self.addresses = addresses

    @abstractmethod
    def allocate_network(
        self,
        context: RequestContext,
        share_server: ShareServer,
        share_network: ShareNetwork,
        amount_of_ports: int,
        **options: str,
    ) -> NetworkInfo:
        """Allocate ``amount_of_ports`` addresses of one subnet for the share server.

        Raises :class:`~worker.errors.Fatal` or :class:`~worker.errors.Retryable`; what was made
        by then is found again by the next attempt or by :meth:`deallocate_network`.
        """

    @abstractmethod
    def deallocate_network(self, context: RequestContext, share_server: ShareServer) -> None:
        """Release all that the share server holds; holding nothing is fine."""


class AddressPools(ABC):
    """The power of a network helper that knows how many addresses its backend's own pools have."""

    @abstractmethod
    def address_pools(self) -> Mapping[str, int]:
        """Return how many addresses may be given out in all, by address book domain."""
