"""Addresses from a DHCP server: the part of ``flat_network`` for share networks of kind ``dhcp``.

Each port of a share server is a DHCP client of its own, with a MAC address made of the server's
id. Its address is written down before it is asked for, and asking again gives the same one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from netaddr import IPAddress, IPNetwork
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random

from worker.addressing import Pool, network_info, parse_endpoint
from worker.errors import ErrorCode, Fatal, InvalidRequest, ObjectKind, Retryable, StepError
from worker.helpers.network.base import LeaseStore
from worker.model import DhcpLease, NetworkInfo, RequestContext, Route, ShareNetwork, ShareServer
from worker.systems.network.dhcp import DhcpServer, Lease, LeaseRefused, Offer, Relay
from worker.systems.network.dhcp_messages import SERVER_PORT, client_of

RELEASE_ATTEMPTS: Final = 3
"""After as many the lease is left to run out by itself: a share server must be deletable."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DhcpAddresses:
    """Takes, renews and gives back share servers' leases; all may be repeated after a crash."""

    store: LeaseStore
    relay: Relay

    def allocate(
        self,
        context: RequestContext,
        share_server: ShareServer,
        share_network: ShareNetwork,
        amount: int,
    ) -> NetworkInfo:
        """Take leases in one subnet, or find those that an earlier attempt took.

        Raises :class:`~worker.errors.Fatal` when the DHCP server has no address left or gives
        what cannot be used, :class:`~worker.errors.Retryable` when it refuses or is silent.
        """
        endpoint = _endpoint(share_network)
        server = self._server(context, share_server, endpoint)
        earlier = {lease.ordinal: lease for lease in self.store.held(share_server.id)}
        leases = [
            self._lease(context, server, share_server, ordinal, earlier.get(ordinal))
            for ordinal in range(amount)
        ]
        return _network_info(share_server, endpoint, leases)

    def _lease(
        self,
        context: RequestContext,
        server: DhcpServer,
        share_server: ShareServer,
        ordinal: int,
        earlier: DhcpLease | None,
    ) -> Lease:
        """Take one lease. An offer binds nobody: another client may be the quicker to take it."""
        client = client_of(share_server.id, ordinal)
        wanted = None if earlier is None else earlier.address
        for attempt in Retrying(
            retry=retry_if_exception_type(LeaseRefused),
            stop=stop_after_delay(self.relay.deadline),
            wait=wait_random(0.01, 0.1),
            reraise=True,
        ):
            with attempt:
                offer = server.discover(client, wanted)
                context.guard()
                if not self.store.offered(
                    DhcpLease(
                        *(share_server.id, ordinal, str(server), offer.address, client.mac),
                        dhcp_server=offer.server_id,
                    )
                ):
                    raise LeaseRefused(
                        f"The DHCP server {server} offered {offer.address} to share server "
                        f"{share_server.id}, and another share server has that address from it; "
                        f"see whether it lost its record of leases.",
                        object=ObjectKind.SHARE_SERVER.ref(share_server.id),
                    )
                lease = server.request(client, offer)
                self._acknowledged(share_server, ordinal, lease)
        return lease

    def release(self, context: RequestContext, share_server: ShareServer) -> None:
        """Release all leases.

        Raises :class:`~worker.errors.NotReady` while they are being renewed, and
        :class:`~worker.errors.Retryable` for the first few times that the server is not reached.
        """
        context.guard()
        leases = self.store.close(share_server.id)
        try:
            for endpoint in sorted({lease.endpoint for lease in leases}):
                self._server(context, share_server, endpoint).release(
                    (client_of(share_server.id, lease.ordinal), _offer(lease))
                    for lease in leases
                    if lease.endpoint == endpoint
                )
        except StepError as error:
            context.guard()
            if self.store.release_failed(share_server.id) < RELEASE_ATTEMPTS:
                raise Retryable(error.message, object=error.object, code=error.code) from error
            _log.warning(
                "%s The addresses %s of share server %s are left to run out there.",
                error.message,
                ", ".join(lease.address for lease in leases),
                share_server.id,
            )
        context.guard()
        self.store.remove(share_server.id)

    def renew(self, context: RequestContext, share_server: ShareServer) -> None:
        """Prolong all leases; one that the DHCP server forgot is asked for anew.

        Raises :class:`~worker.errors.Fatal` when the address is lost,
        :class:`~worker.errors.Retryable` when the DHCP server is silent.
        """
        for lease in self.store.held(share_server.id):
            server = self._server(context, share_server, lease.endpoint)
            client = client_of(share_server.id, lease.ordinal)
            try:
                prolonged = server.renew(client, lease.address)
            except LeaseRefused as refused:
                offer = server.discover(client, lease.address)
                if offer.address != lease.address:
                    raise Fatal(
                        f"{refused.message} It would give {offer.address} instead, but share "
                        f"server {share_server.id} serves at {lease.address}; see that nobody "
                        f"else gets that address, or delete the server's shares.",
                        object=ObjectKind.SHARE_SERVER.ref(share_server.id),
                        code=ErrorCode.NETWORK_FAILED,
                    ) from refused
                prolonged = server.request(client, offer)
            self._acknowledged(share_server, lease.ordinal, prolonged)

    def _acknowledged(self, share_server: ShareServer, ordinal: int, lease: Lease) -> None:
        self.store.acknowledged(
            share_server.id, ordinal, seconds=lease.seconds, renew_after=lease.renew_after
        )

    def _server(
        self, context: RequestContext, share_server: ShareServer, endpoint: str
    ) -> DhcpServer:
        host, _, port = endpoint.rpartition(":")
        about = ObjectKind.SHARE_SERVER.ref(share_server.id)
        return DhcpServer(host, int(port), self.relay, about, context.guard)


def _offer(lease: DhcpLease) -> Offer:
    return Offer(lease.address, lease.dhcp_server)


def _endpoint(share_network: ShareNetwork) -> str:
    """Return the share network's DHCP server in the form host:port."""
    try:
        endpoint = parse_endpoint(share_network.dhcp_endpoint or "", "dhcp_endpoint")
        if ":" in endpoint.host:
            raise InvalidRequest("DHCP of IPv6 is not spoken; name a server that has IPv4.")
    except InvalidRequest as error:
        raise Fatal(
            f"The dhcp_endpoint of share network {share_network.id} cannot be used: "
            f"{error.message}",
            object=ObjectKind.SHARE_NETWORK.ref(share_network.id),
            field="dhcp_endpoint",
            code=ErrorCode.NETWORK_FAILED,
        ) from error
    return f"{endpoint.host}:{endpoint.port or SERVER_PORT}"


def _network_info(share_server: ShareServer, endpoint: str, leases: Sequence[Lease]) -> NetworkInfo:
    subnets = {lease.subnet for lease in leases}
    if len(subnets) > 1:
        raise Fatal(
            f"The DHCP server {endpoint} gave share server {share_server.id} addresses of several "
            f"subnets ({', '.join(sorted(map(str, subnets)))}); one subnet must have enough.",
            object=ObjectKind.SHARE_SERVER.ref(share_server.id),
            code=ErrorCode.NETWORK_FAILED,
        )
    first = leases[0]
    gateway = None if first.gateway is None else IPAddress(first.gateway)
    return replace(
        network_info(
            Pool(IPNetwork(str(first.subnet)), gateway, ranges=()),
            [lease.address for lease in leases],
            attributes={"domain": f"dhcp:{endpoint}"},
        ),
        mac_addresses=tuple(client_of(share_server.id, n).mac for n in range(len(leases))),
        routes=tuple(Route(destination, nexthop) for destination, nexthop in first.routes),
        mtu=first.mtu,
    )
