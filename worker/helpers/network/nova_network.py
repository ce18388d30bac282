"""Addresses of nova-network: for share networks that name one, and networks made for others.

nova-network's own reservation is neither atomic nor exclusive, so an address is ours by rows: one
that keeps our other servers off it, and one written just before it is reserved. Only what has the
second row is ever unreserved, so reservations of others stay. An address that others use is kept
aside under the first row and passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar, Final

from netaddr import IPAddress
from pydantic import Field

from worker.addressing import Pool, network_info, parse_pool, parse_subnet
from worker.errors import ConfigurationError, ErrorCode, Fatal, InvalidRequest, ObjectKind
from worker.helpers.network.base import AddressStore, NetworkHelper
from worker.model import (
    DriverMode,
    NetworkInfo,
    NetworkKind,
    OwnedResource,
    OwnerKind,
    RequestContext,
    SegmentSource,
    ShareNetwork,
    ShareServer,
)
from worker.plugin import Audit, BackendContext, Options, placeholder_server
from worker.systems.openstack.client import Taken
from worker.systems.openstack.nova_network import NovaNetwork, NovaNetworks, NovaOptions

_HIGHEST_VLAN = 4094
_LABEL: Final = "sharewright-"
_AUDIT: Final = "audit-"
"""With a share network's id: what holds a segment while the audit removes its network."""


class NovaNetworkOptions(NovaOptions):
    """Which Nova, and what may be made there for share networks of kind ``managed``."""

    name: str = Field(
        "",
        max_length=200,
        description="Name of the Nova. Backends that use the same one must give it the same name; "
        "empty: the backend's name.",
    )
    vlan_ids: tuple[int, int] | None = Field(
        None,
        description="The first and the last VLAN id for networks of `managed` share networks. "
        "Without it there are none.",
    )
    subnets: str | None = Field(
        None,
        description="An IPv4 CIDR that is cut into a subnet for each `managed` share network that "
        "names none.",
    )
    prefix_length: int = Field(
        24, ge=8, le=30, description="Prefix length of the subnets that are cut from `subnets`."
    )


class NovaNetworkHelper(NetworkHelper, Audit):
    """Reserves addresses of nova-network, and creates networks there."""

    OptionsModel: ClassVar[type[Options]] = NovaNetworkOptions
    kinds: ClassVar[frozenset[NetworkKind]] = frozenset({NetworkKind.NOVA, NetworkKind.MANAGED})
    modes: ClassVar[frozenset[DriverMode]] = frozenset({DriverMode.MANAGED_MULTI_SVM})
    options: NovaNetworkOptions

    def __init__(
        self, backend: BackendContext, options: NovaNetworkOptions, addresses: AddressStore
    ) -> None:
        super().__init__(backend, options, addresses)
        self._nova = NovaNetworks(options)
        self._domain = f"nova:{options.name or backend.name}"
        self._reserving = f"nova-reserved:{options.name or backend.name}"
        try:
            self._source = _source(self._domain, options)
        except InvalidRequest as error:
            raise ConfigurationError(
                f"Backend {backend.name}, network helper option {error.field}: {error.message}",
                field=error.field,
            ) from error

    def allocate_network(
        self,
        context: RequestContext,
        share_server: ShareServer,
        share_network: ShareNetwork,
        amount_of_ports: int,
    ) -> NetworkInfo:
        """Reserve addresses for the share server, or find those that it has.

        Raises :class:`~worker.errors.Fatal` when the network does not exist or cannot be made, or
        no address is left, and :class:`~worker.errors.Retryable` when Nova is not reached.
        """
        network = self._network(context, share_server, share_network)
        pool = _pool(network, share_network)
        reserved = self._reserved(context, share_server, pool, amount_of_ports)
        return replace(
            network_info(pool, reserved, attributes={"nova_network_id": network.id}),
            segmentation_type=None if network.vlan is None else "vlan",
            segmentation_id=network.vlan,
            mtu=network.mtu,
        )

    def deallocate_network(self, context: RequestContext, share_server: ShareServer) -> None:
        """Unreserve the server's addresses; remove the network that was made for the last one."""
        about = ObjectKind.SHARE_SERVER.ref(share_server.id)
        for address in self.addresses.held(self._reserving, share_server.id):
            self._nova.unreserve(address, about=about, guard=context.guard)
        context.guard()
        closed = self.addresses.segments.close(share_server.id)
        if closed is not None:
            for network in self._made(closed.share_network_id, about):
                self._nova.delete(network, about=about, guard=context.guard)
        context.guard()
        self.addresses.release(share_server.id)
        context.guard()
        self.addresses.segments.release(share_server.id)

    def owned(self, context: RequestContext) -> Iterator[OwnedResource]:  # noqa: ARG002 - it only reads
        """List the addresses and segments that are ours by rows, and networks by their labels."""
        domains = {self._domain, self._reserving}
        for held in (*self.addresses.holdings(), *self.addresses.segments.holdings()):
            if held.domain not in domains:
                continue
            holder, thing = held.share_server_id, f"{held.domain} {held.what}"
            if holder.startswith(_AUDIT):
                owner = holder.removeprefix(_AUDIT)
                yield OwnedResource("VLAN of the audit", thing, OwnerKind.SHARE_NETWORK, owner)
            else:
                yield OwnedResource(
                    "address or VLAN", f"{thing} {holder}", OwnerKind.SHARE_SERVER, holder
                )
        if self._source is None:
            return
        for network in self._nova.networks(about=ObjectKind.BACKEND.ref(self.backend.name)):
            owner = network.label.removeprefix(_LABEL)
            if owner != network.label:
                yield OwnedResource("network", network.id, OwnerKind.SHARE_NETWORK, owner)

    def remove_orphan(self, context: RequestContext, owned: OwnedResource) -> None:
        """Unreserve the server's addresses, or delete the share network's network.

        The network goes as its last server would let it go: on its segment, with nobody else.
        """
        if owned.owner_kind is OwnerKind.SHARE_SERVER:
            self.deallocate_network(context, placeholder_server(self.backend, owned))
            return
        owner, holder = owned.owner_id, f"{_AUDIT}{owned.owner_id}"
        made = self._made(owner, f"share_network {owner}")
        if made and self._source is not None:
            context.guard()
            self.addresses.segments.take(self._source, owner, holder, made[0].cidr)
        self.deallocate_network(
            context, replace(placeholder_server(self.backend, owned), id=holder)
        )

    def _network(
        self, context: RequestContext, share_server: ShareServer, share_network: ShareNetwork
    ) -> NovaNetwork:
        """Find or create the share network's network."""
        about = ObjectKind.SHARE_NETWORK.ref(share_network.id)
        if share_network.nova_network_id is not None:
            return self._nova.network(share_network.nova_network_id, about=about)
        if self._source is None:
            raise Fatal(
                f"Share network {share_network.id} asks for a network to be made, and backend "
                f"{self.backend.name} has no VLANs for that; set the network helper's vlan_ids.",
                object=about,
                code=ErrorCode.CONFIGURATION,
            )
        context.guard()
        segment = self.addresses.segments.take(
            self._source, share_network.id, share_server.id, share_network.cidr
        )
        wanted = {
            "label": _label(share_network.id),
            "cidr": segment.cidr,
            "vlan": segment.segmentation_id,
        }
        made = self._made(share_network.id, about)
        if made:
            return made[0]
        try:
            return self._nova.create(wanted, about=about, guard=context.guard)
        except Taken:
            # By another server of this share network, at the same moment?
            made = self._made(share_network.id, about)
            if not made:
                raise
            return made[0]

    def _made(self, share_network_id: str, about: str) -> list[NovaNetwork]:
        """Find what was made for a share network, by the name that it was given."""
        label = _label(share_network_id)
        found = [one for one in self._nova.networks(about=about) if one.label == label]
        return sorted(found, key=lambda network: network.id)

    def _reserved(
        self, context: RequestContext, share_server: ShareServer, pool: Pool, amount: int
    ) -> list[str]:
        """Reserve the missing addresses, skipping those that others use."""
        held = self.addresses.held(self._reserving, share_server.id)
        usable = [one for one in held if self._reserve(context, share_server, one)]
        passed_over = set(held) - set(usable)
        while len(usable) < amount:
            context.guard()
            taken = self.addresses.take(
                self._domain,
                pool.ranges,
                pool.ip_version,
                share_server.id,
                amount + len(passed_over),
            )
            for address in taken:
                if len(usable) == amount or address in passed_over or address in usable:
                    continue
                if self._reserve(context, share_server, address):
                    usable.append(address)
                else:
                    passed_over.add(address)
        return usable[:amount]

    def _reserve(self, context: RequestContext, share_server: ShareServer, address: str) -> bool:
        """Reserve an address recorded as ours; return whether nobody else has it."""
        about = ObjectKind.SHARE_SERVER.ref(share_server.id)
        seen = self._nova.fixed_address(address, about=about)
        if seen is None or seen.in_use:
            return False
        ours = self.addresses.held(self._reserving, share_server.id)
        if address not in ours:
            if seen.reserved:
                return False
            context.guard()
            only = int(IPAddress(address))
            self.addresses.take(self._reserving, ((only, only),), 4, share_server.id, len(ours) + 1)
        if not seen.reserved:
            self._nova.reserve(address, about=about, guard=context.guard)
            seen = self._nova.fixed_address(address, about=about)
        return seen is not None and seen.reserved and not seen.in_use


def _source(domain: str, options: NovaNetworkOptions) -> SegmentSource | None:
    if options.vlan_ids is None:
        return None
    first, last = options.vlan_ids
    if not 1 <= first <= last <= _HIGHEST_VLAN:
        raise InvalidRequest(
            f"{first} to {last} is no range of VLAN ids; they are 1 to {_HIGHEST_VLAN}, the lower "
            f"one first.",
            field="vlan_ids",
        )
    if options.subnets is not None:
        whole = parse_subnet(options.subnets, "subnets")
        if whole.version != 4 or whole.prefixlen > options.prefix_length:  # noqa: PLR2004 - IPv4
            raise InvalidRequest(
                f"{whole} cannot be cut into IPv4 subnets of /{options.prefix_length}.",
                field="subnets",
            )
    return SegmentSource(domain, options.vlan_ids, options.subnets, options.prefix_length)


def _label(share_network_id: str) -> str:
    return f"{_LABEL}{share_network_id}"


def _pool(network: NovaNetwork, share_network: ShareNetwork) -> Pool:
    """What may be given out of a network, as its own document says."""
    try:
        subnet = parse_subnet(network.cidr, "cidr")
        dhcp = network.dhcp_server
        return parse_pool(
            [network.cidr],
            subnet=network.cidr,
            gateway=network.gateway,
            reserved=[dhcp] if dhcp is not None and dhcp in subnet else [],
        )
    except InvalidRequest as error:
        raise Fatal(
            f"nova-network {network.id} of share network {share_network.id} cannot be used: "
            f"{error.message}",
            object=ObjectKind.SHARE_NETWORK.ref(share_network.id),
            code=ErrorCode.NETWORK_FAILED,
        ) from error
