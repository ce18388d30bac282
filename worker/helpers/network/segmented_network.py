"""Networks of our own for share networks of kind ``managed``: segments, with no other software.

Each share network gets a segment (a VXLAN network identifier or a VLAN id of a range) and a
subnet: the one that it names, or one of the backend's. Both are rows; the compute helper builds
the encapsulation on the server's host. Subnets that tenants name may overlap: nothing but the
segment has to tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from typing import ClassVar, Final, Literal

from netaddr import IPAddress, IPNetwork
from pydantic import Field

from worker.addressing import FieldNames, Pool, network_info, parse_pool, parse_subnet
from worker.errors import ConfigurationError, ErrorCode, Fatal, InvalidRequest, ObjectKind
from worker.helpers.network.base import NETWORK_DOMAIN, AddressStore, NetworkHelper
from worker.model import (
    DriverMode,
    NetworkInfo,
    NetworkKind,
    OwnedResource,
    OwnerKind,
    RequestContext,
    Route,
    SegmentSource,
    ShareNetwork,
    ShareServer,
)
from worker.plugin import Audit, BackendContext, Options, placeholder_server

Position = Literal["first", "last", "none"]


class SegmentType(StrEnum):
    """How a segment is carried between hosts."""

    VXLAN = "vxlan"
    VLAN = "vlan"


_FIELDS: Final = FieldNames("tenant_addresses", "cidr", "gateway", "tenant_addresses")
_HIGHEST_ID: Final = {SegmentType.VXLAN: (1 << 24) - 1, SegmentType.VLAN: 4094}
# An Ethernet header, VXLAN, UDP and IPv4 are 50 bytes of the underlay's 1500.
_MTU: Final = {SegmentType.VXLAN: 1450, SegmentType.VLAN: 1500}


class SegmentedNetworkOptions(Options):
    """Options of the segments and subnets that the backend may allocate to share networks."""

    segment_type: SegmentType = Field(
        SegmentType.VXLAN, description="`vxlan` or `vlan`: how segments travel between hosts."
    )
    segment_ids: tuple[int, int] = Field(
        description="The first and the last VXLAN network identifier (up to 16777215) or VLAN id "
        "(up to 4094) that may be given out."
    )
    name: str = Field(
        "",
        max_length=200,
        description="Name of the underlay. Backends with the same name give a share network the "
        "same segment and never the same address; empty: the backend's name.",
    )
    subnets: str | None = Field(
        None,
        description="A CIDR that is cut into a subnet for each share network that names none. "
        "Without it share networks must name their `cidr`.",
    )
    prefix_length: int = Field(
        24, ge=8, le=127, description="Prefix length of the subnets that are cut from `subnets`."
    )
    gateway: Position = Field(
        "first",
        description="Which address of each subnet is the tenant's router, and the share servers' "
        "default route: `first`, `last` or `none`.",
    )
    tenant_addresses: int = Field(
        0,
        ge=0,
        description="How many addresses at the beginning of each subnet are left for the tenant's "
        "own machines.",
    )
    tenant_prefixes: tuple[str, ...] = Field(
        (), description="CIDRs that share servers reach through `next_hop`."
    )
    next_hop: Position = Field(
        "none",
        description="Which address of each subnet routes to `tenant_prefixes`: `first` or `last`; "
        "`none`: the gateway does.",
    )
    mtu: int | None = Field(
        None,
        ge=1280,
        le=9216,
        description="MTU of the segments; without it 1450 for VXLAN and 1500 for VLAN.",
    )


class SegmentedNetworkHelper(NetworkHelper, Audit):
    """Gives share networks segments and share servers addresses in them."""

    OptionsModel: ClassVar[type[Options]] = SegmentedNetworkOptions
    kinds: ClassVar[frozenset[NetworkKind]] = frozenset({NetworkKind.MANAGED})
    modes: ClassVar[frozenset[DriverMode]] = frozenset({DriverMode.MANAGED_MULTI_SVM})
    options: SegmentedNetworkOptions

    def __init__(
        self, backend: BackendContext, options: SegmentedNetworkOptions, addresses: AddressStore
    ) -> None:
        super().__init__(backend, options, addresses)
        try:
            self._source = _source(backend, options)
            self._prefixes = [parse_subnet(p, "tenant_prefixes") for p in options.tenant_prefixes]
        except InvalidRequest as error:
            raise ConfigurationError(
                f"Backend {backend.name}, network helper option {error.field}: {error.message}",
                field=error.field,
            ) from error
        if self._prefixes and options.next_hop == options.gateway == "none":
            raise ConfigurationError(
                f"Backend {backend.name}: the network helper has tenant_prefixes and neither "
                f"next_hop nor gateway; set one of them."
            )

    def allocate_network(
        self,
        context: RequestContext,
        share_server: ShareServer,
        share_network: ShareNetwork,
        amount_of_ports: int,
    ) -> NetworkInfo:
        """Assign the share server to its share network's segment and allocate addresses there.

        Raises :class:`~worker.errors.Fatal` when no segment, subnet or address is left or the
        share network's cidr cannot be used, :class:`~worker.errors.NotReady` when some become
        free shortly.
        """
        if share_network.cidr is not None:
            self._pool(share_network, share_network.cidr)
        context.guard()
        segment = self.addresses.segments.take(
            self._source, share_network.id, share_server.id, share_network.cidr
        )
        pool = self._pool(share_network, segment.cidr)
        context.guard()
        taken = self.addresses.take(
            f"{NETWORK_DOMAIN}{share_network.id}",
            pool.ranges,
            pool.ip_version,
            share_server.id,
            amount_of_ports,
        )
        return replace(
            network_info(pool, taken, attributes={"domain": segment.domain}),
            routes=tuple(self._routes(pool)),
            segmentation_type=str(self.options.segment_type),
            segmentation_id=segment.segmentation_id,
            mtu=self.options.mtu or _MTU[self.options.segment_type],
        )

    def deallocate_network(self, context: RequestContext, share_server: ShareServer) -> None:
        """Release the addresses, and the segment with the share network's last server."""
        context.guard()
        self.addresses.release(share_server.id)
        context.guard()
        self.addresses.segments.release(share_server.id)

    def owned(self, context: RequestContext) -> Iterator[OwnedResource]:  # noqa: ARG002 - rows need no guard
        """List who is on a segment of ours, and addresses that share networks name."""
        segments = [
            held
            for held in self.addresses.segments.holdings()
            if held.domain == self._source.domain
        ]
        addresses = [
            held for held in self.addresses.holdings() if held.domain.startswith(NETWORK_DOMAIN)
        ]
        for kind, holdings in (("segment", segments), ("address", addresses)):
            for held in holdings:
                about = held.share_server_id if kind == "segment" else ""
                yield OwnedResource(
                    kind,
                    f"{held.domain} {held.what} {about}".strip(),
                    OwnerKind.SHARE_SERVER,
                    held.share_server_id,
                )

    def remove_orphan(self, context: RequestContext, owned: OwnedResource) -> None:
        """Release the removed server's addresses and segment."""
        self.deallocate_network(context, placeholder_server(self.backend, owned))

    def _pool(self, share_network: ShareNetwork, cidr: str) -> Pool:
        try:
            return _pool(cidr, self.options)
        except InvalidRequest as error:
            raise Fatal(
                f"The subnet of share network {share_network.id} cannot be used: {error.message}",
                object=ObjectKind.SHARE_NETWORK.ref(share_network.id),
                field="cidr",
                code=ErrorCode.NETWORK_FAILED,
            ) from error

    def _routes(self, pool: Pool) -> Iterator[Route]:
        hop = _at(pool.subnet, self.options.next_hop) or pool.gateway
        for prefix in self._prefixes:
            # A route to the subnet itself would take its own machines' place.
            if prefix.version == pool.ip_version and prefix not in pool.subnet:
                yield Route(str(prefix), str(hop))


def _source(backend: BackendContext, options: SegmentedNetworkOptions) -> SegmentSource:
    first, last = options.segment_ids
    highest = _HIGHEST_ID[options.segment_type]
    if not 1 <= first <= last <= highest:
        raise InvalidRequest(
            f"{first} to {last} is no range of {options.segment_type} ids; they are 1 to "
            f"{highest}, the lower one first.",
            field="segment_ids",
        )
    if options.subnets is not None:
        whole = parse_subnet(options.subnets, "subnets")
        smallest = 31 if whole.version == 4 else 127  # noqa: PLR2004 - RFC 3021, RFC 6164
        if not whole.prefixlen <= options.prefix_length <= smallest:
            raise InvalidRequest(
                f"{whole} cannot be cut into /{options.prefix_length}; the length is "
                f"{whole.prefixlen} to {smallest}.",
                field="prefix_length",
            )
        _pool(f"{whole.ip}/{options.prefix_length}", options)
    domain = f"{options.segment_type}:{options.name or backend.name}"
    return SegmentSource(domain, options.segment_ids, options.subnets, options.prefix_length)


def _pool(cidr: str, options: SegmentedNetworkOptions) -> Pool:
    """What share servers may have of a subnet."""
    subnet = parse_subnet(cidr, "cidr")
    gateway, hop = _at(subnet, options.gateway), _at(subnet, options.next_hop)
    reserved = [str(hop)] if hop is not None else []
    if options.tenant_addresses:
        first = subnet.first + (subnet.size > 2)  # noqa: PLR2004 - RFC 3021, RFC 6164
        last = min(first + options.tenant_addresses - 1, subnet.last)
        reserved.append("-".join(str(IPAddress(n, subnet.version)) for n in (first, last)))
    return parse_pool(
        [cidr],
        subnet=cidr,
        gateway=str(gateway) if gateway is not None else None,
        reserved=reserved,
        fields=_FIELDS,
    )


def _at(subnet: IPNetwork, position: Position) -> IPAddress | None:
    if position == "none":
        return None
    within = subnet.size > 2  # noqa: PLR2004 - RFC 3021, RFC 6164
    if position == "first":
        return IPAddress(subnet.first + within, subnet.version)
    return IPAddress(subnet.last - (within and subnet.version == 4), subnet.version)  # noqa: PLR2004
