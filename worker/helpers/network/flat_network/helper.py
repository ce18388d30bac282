"""Addresses on a flat network that exists already: of a pool, or of a DHCP server.

The flat network reaches the tenants; the operator set that up in advance. What is given out comes
from the backend's own ``subnet`` and ``ranges``, or, where the backend says
``share_network_addresses``, from the share network's pool or its DHCP server.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address
from typing import ClassVar

from pydantic import Field

from worker.addressing import BACKEND_FIELDS, Pool, network_info, parse_pool, share_network_pool
from worker.errors import ConfigurationError, ErrorCode, Fatal, InvalidRequest, ObjectKind
from worker.helpers.network.base import (
    NETWORK_DOMAIN,
    AddressPools,
    AddressStore,
    NetworkHelper,
    Renewing,
)
from worker.helpers.network.flat_network.dhcp import DhcpAddresses
from worker.model import (
    DriverMode,
    NetworkInfo,
    NetworkKind,
    OwnedResource,
    OwnerKind,
    RequestContext,
    ShareNetwork,
    ShareServer,
)
from worker.plugin import Audit, BackendContext, Options, placeholder_server
from worker.systems.network.dhcp import Relay


class FlatNetworkOptions(Options):
    """Options of the backend's own addresses on its flat network."""

    subnet: str | None = Field(
        None,
        description="The flat network's subnet as a CIDR. Without it the backend has no addresses "
        "of its own and serves only share networks that name theirs.",
    )
    gateway: str | None = Field(
        None, description="The subnet's gateway, which share servers route through."
    )
    ranges: tuple[str, ...] = Field(
        (),
        description="What may be given out: CIDRs, addresses and `first-last` ranges inside the "
        "subnet; empty: the whole subnet.",
    )
    reserved: tuple[str, ...] = Field(
        (), description="What is never given out, written like `ranges`."
    )
    name: str = Field(
        "",
        max_length=200,
        description="Name of the flat network. Backends with the same name are on the same "
        "network and never give out the same address; empty: the backend's name.",
    )
    dhcp_relay_address: IPv4Address | None = Field(
        None,
        description="`dhcp` share networks: the address of this host that DHCP servers are asked "
        "from as a relay (giaddr), and by which they choose the subnet; port 67 of it must be "
        "free. Without it the address that this host reaches the server from.",
    )
    dhcp_namespace: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9._-]+$",
        description="The network namespace that has that address; without it the host's own.",
    )
    dhcp_deadline: float = Field(
        10.0,
        gt=0,
        le=60,
        description="Seconds that a DHCP server may take for one answer. dnsmasq looks for 3 s "
        "whether an address is in use before it offers it, unless it has `no-ping`.",
    )


class FlatNetworkHelper(NetworkHelper, AddressPools, Renewing, Audit):
    """Gives share servers addresses of a flat network."""

    OptionsModel: ClassVar[type[Options]] = FlatNetworkOptions
    kinds: ClassVar[frozenset[NetworkKind]] = frozenset({NetworkKind.FLAT_POOL, NetworkKind.DHCP})
    modes: ClassVar[frozenset[DriverMode]] = frozenset({DriverMode.FLAT_MULTI_SVM})

    def __init__(
        self, backend: BackendContext, options: FlatNetworkOptions, addresses: AddressStore
    ) -> None:
        super().__init__(backend, options, addresses)
        self._domain = f"flat:{options.name or backend.name}"
        self._pool = _own_pool(backend, options)
        self.has_own_addresses = self._pool is not None
        relay = options.dhcp_relay_address
        self._dhcp = DhcpAddresses(
            addresses.leases,
            Relay(
                None if relay is None else str(relay),
                options.dhcp_namespace,
                options.dhcp_deadline,
            ),
        )

    def allocate_network(
        self,
        context: RequestContext,
        share_server: ShareServer,
        share_network: ShareNetwork,
        amount_of_ports: int,
    ) -> NetworkInfo:
        """Take addresses for the share server, or find those that it holds.

        Raises :class:`~worker.errors.Fatal` when there is no pool for the share network or none
        of its addresses is left, :class:`~worker.errors.NotReady` when some become free shortly,
        :class:`~worker.errors.Retryable` when its DHCP server does not answer.
        """
        if self.backend.share_network_addresses and share_network.kind is NetworkKind.DHCP:
            return self._dhcp.allocate(context, share_server, share_network, amount_of_ports)
        domain, pool = self._pool_for(share_network)
        context.guard()
        taken = self.addresses.take(
            domain, pool.ranges, pool.ip_version, share_server.id, amount_of_ports
        )
        external = [address for address in taken if address not in pool.subnet]
        if external:
            raise Fatal(
                f"Share server {share_server.id} holds {', '.join(external)}, which is outside the "
                f"subnet {pool.subnet}: the subnet was changed while the server was being built; "
                f"create the share again.",
                object=ObjectKind.SHARE_SERVER.ref(share_server.id),
                code=ErrorCode.NETWORK_FAILED,
            )
        return network_info(pool, taken, attributes={"domain": domain})

    def address_pools(self) -> Mapping[str, int]:
        """Implement :meth:`AddressPools.address_pools`, without the pools of share networks."""
        return {} if self._pool is None else {self._domain: self._pool.size}

    def deallocate_network(self, context: RequestContext, share_server: ShareServer) -> None:
        """Release all addresses and leases of the share server."""
        context.guard()
        self.addresses.release(share_server.id)
        self._dhcp.release(context, share_server)

    def renew_network(self, context: RequestContext, share_server: ShareServer) -> None:
        """Renew the DHCP leases of the share server; a pool's addresses do not run out."""
        self._dhcp.renew(context, share_server)

    def owned(self, context: RequestContext) -> Iterator[OwnedResource]:  # noqa: ARG002 - rows need no guard
        """List the addresses and leases that share servers hold, of any backend."""
        for held in self.addresses.holdings():
            if held.domain == self._domain or held.domain.startswith(NETWORK_DOMAIN):
                yield OwnedResource(
                    "address",
                    f"{held.domain} {held.what}",
                    OwnerKind.SHARE_SERVER,
                    held.share_server_id,
                )
        for lease in self.addresses.leases.all():
            yield OwnedResource(
                "DHCP lease",
                f"{lease.endpoint} {lease.address}",
                OwnerKind.SHARE_SERVER,
                lease.share_server_id,
            )

    def remove_orphan(self, context: RequestContext, owned: OwnedResource) -> None:
        """Release all addresses and leases of the removed share server."""
        self.deallocate_network(context, placeholder_server(self.backend, owned))

    def _pool_for(self, share_network: ShareNetwork) -> tuple[str, Pool]:
        """Return the address pool for servers of the share network."""
        if self.backend.share_network_addresses and share_network.kind is NetworkKind.FLAT_POOL:
            try:
                pool = share_network_pool(share_network)
            except InvalidRequest as error:
                raise Fatal(
                    f"The pool of share network {share_network.id} cannot be used: {error.message}",
                    object=ObjectKind.SHARE_NETWORK.ref(share_network.id),
                    field=error.field,
                    code=ErrorCode.NETWORK_FAILED,
                ) from error
            return f"{NETWORK_DOMAIN}{share_network.id}", pool
        if self._pool is None:
            raise Fatal(
                f"Backend {self.backend.name} has no addresses of its own and share network "
                f"{share_network.id} of kind {share_network.kind} names none; set the network "
                f"helper's subnet, or use a flat_pool share network.",
                object=ObjectKind.SHARE_NETWORK.ref(share_network.id),
                code=ErrorCode.CONFIGURATION,
            )
        return self._domain, self._pool


def _own_pool(backend: BackendContext, options: FlatNetworkOptions) -> Pool | None:
    if options.subnet is None:
        superfluous = sorted(options.model_fields_set & {"gateway", "ranges", "reserved"})
        if superfluous:
            raise ConfigurationError(
                f"Backend {backend.name}: the network helper has {', '.join(superfluous)} "
                f"but no subnet; set subnet."
            )
        if not backend.share_network_addresses:
            raise ConfigurationError(
                f"Backend {backend.name} has no addresses to give out: set the network "
                f"helper's subnet, or share_network_addresses = true."
            )
        return None
    try:
        return parse_pool(
            options.ranges or (options.subnet,),
            subnet=options.subnet,
            gateway=options.gateway,
            reserved=options.reserved,
            fields=BACKEND_FIELDS,
        )
    except InvalidRequest as error:
        raise ConfigurationError(
            f"Backend {backend.name}, network helper option {error.field}: {error.message}",
            field=error.field,
        ) from error
