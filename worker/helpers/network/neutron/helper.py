"""Ports in Neutron: on the tenant's network, on the backend's own, or on one that we make.

Every port carries the share server's id as its device id, in its name and in a tag. Its MAC
address is derived from that id too: Neutron gives a MAC address out once a network, so two attempts
of one step, however late the first one's message lands, make one port between them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar, Final

from netaddr import IPAddress, IPNetwork
from openstack.connection import Connection
from openstack.network.v2.network import Network
from openstack.network.v2.port import Port
from pydantic import Field

from worker.addressing import Pool, network_info
from worker.errors import ConfigurationError, ErrorCode, Fatal, ObjectKind
from worker.failpoints import failpoint
from worker.helpers.network.base import AddressStore, NetworkHelper
from worker.helpers.network.neutron.managed import (
    DEVICE_OWNER,
    TAG,
    ManagedNetworks,
    ManagedOptions,
    Place,
    busy,
)
from worker.model import (
    DriverMode,
    NetworkInfo,
    NetworkKind,
    OwnedResource,
    OwnerKind,
    RequestContext,
    Route,
    ShareNetwork,
    ShareServer,
)
from worker.plugin import Audit, BackendContext, Checked, Options, placeholder_server
from worker.systems.openstack.client import OpenStack, Taken, only, seconds

BINDING_FAILED: Final = "binding_failed"
_SERVER_TAG: Final = "share_server="
_NAME: Final = re.compile(r"sharewright-(.+)-\d+")


class NeutronOptions(ManagedOptions):
    """Options of the Neutron network helper."""

    neutron_net: str | None = Field(
        None,
        description="`flat_multi_svm`: the network of all of the backend's share servers, by id "
        "or name.",
    )
    neutron_subnet: str | None = Field(
        None,
        description="`flat_multi_svm`: its subnet, by id or name; may be left out where the "
        "network has one.",
    )
    binding_host: str | None = Field(
        None, description="The host that ports are bound on; empty: whoever uses them binds them."
    )
    security_groups: tuple[str, ...] | None = Field(
        None,
        description="Ids of the security groups that filter the ports; left out: the default "
        "group of the backend's project.",
    )
    physical_network: str | None = Field(
        None, description="Which segment of a network with several is the share servers'."
    )


class NeutronNetworkHelper(NetworkHelper, Checked, Audit):
    """Gives share servers ports in Neutron."""

    OptionsModel: ClassVar[type[Options]] = NeutronOptions
    kinds: ClassVar[frozenset[NetworkKind]] = frozenset({NetworkKind.NEUTRON, NetworkKind.MANAGED})
    modes: ClassVar[frozenset[DriverMode]] = frozenset(
        {DriverMode.FLAT_MULTI_SVM, DriverMode.MANAGED_MULTI_SVM}
    )
    gives_ports: ClassVar[bool] = True
    options: NeutronOptions

    def __init__(
        self, backend: BackendContext, options: NeutronOptions, addresses: AddressStore
    ) -> None:
        super().__init__(backend, options, addresses)
        self._flat = backend.mode is DriverMode.FLAT_MULTI_SVM
        _check_options(backend, options, flat=self._flat)
        self._neutron = OpenStack(options, ErrorCode.NETWORK_FAILED)
        self._managed = ManagedNetworks(options, self._neutron, addresses)

    def check(self) -> None:
        """Log in, and look up the networks named in the options."""
        about = ObjectKind.BACKEND.ref(self.backend.name)
        self._neutron.ask("log in", lambda c: c.session.get_token(), about=about)
        if self._flat:
            self._configured(about)
        else:
            self._managed.external_network(about)

    def allocate_network(
        self,
        context: RequestContext,
        share_server: ShareServer,
        share_network: ShareNetwork,
        amount_of_ports: int,
    ) -> NetworkInfo:
        """Create ports for the share server, or find those that it has.

        Raises :class:`~worker.errors.NotReady` while another server's builder makes or removes
        the managed network of the share network.
        """
        place = self._place(context, share_server, share_network)
        room = sum(_size(pool["start"], pool["end"]) for pool in place.subnet.allocation_pools)
        if amount_of_ports > room:
            raise Fatal(
                f"Share server {share_server.id} needs {amount_of_ports} addresses and subnet "
                f"{place.subnet.id} ({place.subnet.cidr}) has {room} in all; use a larger subnet.",
                object=ObjectKind.SHARE_SERVER.ref(share_server.id),
                code=ErrorCode.ADDRESSES_EXHAUSTED,
            )
        ports = self._ports(context, share_server, place, amount_of_ports)
        if share_network.kind is NetworkKind.MANAGED and not self._flat:
            self._check_network_stays(context, share_server, share_network, place, ports)
        return self._info(place, ports)

    def deallocate_network(self, context: RequestContext, share_server: ShareServer) -> None:
        """Delete the server's ports, and a managed network with its last server."""
        for port in self._held(share_server):
            self._delete(context, share_server, port)
        if not self._flat and share_server.share_network_id is not None:
            self._managed.remove_unused(context, share_server, share_server.share_network_id)

    def owned(self, context: RequestContext) -> Iterator[OwnedResource]:  # noqa: ARG002 - it only reads
        """List our ports, each with its share server, and our networks and routers."""
        about = ObjectKind.BACKEND.ref(self.backend.name)

        def find(connection: Connection) -> list[Port]:
            ours = (
                *connection.network.ports(device_owner=DEVICE_OWNER),
                *connection.network.ports(tags=TAG),
            )
            return list({port.id: port for port in ours}.values())

        for port in self._neutron.ask("list our ports", find, about=about):
            server_id = _server_of(port)
            if server_id is not None:
                yield OwnedResource(
                    *("port", port.id, OwnerKind.SHARE_SERVER, server_id),
                    created_at=seconds(port.created_at),
                )
        yield from self._managed.owned(about)

    def remove_orphan(self, context: RequestContext, owned: OwnedResource) -> None:
        """Delete a share server's ports, or a share network's network or router."""
        server = placeholder_server(self.backend, owned)
        if owned.kind == "port":
            for port in self._held(server):
                self._delete(context, server, port)
        else:
            self._managed.remove_orphan(context, server, owned)

    def _check_network_stays(
        self,
        context: RequestContext,
        server: ShareServer,
        share_network: ShareNetwork,
        place: Place,
        ports: list[Port],
    ) -> None:
        """Give way to whoever removes the managed network that the ports were made on."""
        if self._managed.stays(place.network, server):
            return
        for port in ports:
            self._delete(context, server, port)
        raise busy(share_network)

    def _place(
        self, context: RequestContext, server: ShareServer, share_network: ShareNetwork
    ) -> Place:
        about = ObjectKind.SHARE_NETWORK.ref(share_network.id)
        if self._flat:
            return self._configured(about)
        if share_network.kind is NetworkKind.MANAGED:
            return self._managed.ensure(context, server, share_network)
        net_id, subnet_id = share_network.neutron_net_id, share_network.neutron_subnet_id
        assert net_id is not None, "a constraint of the table"
        assert subnet_id is not None, "a constraint of the table"
        network = self._neutron.ask(
            f"read network {net_id}", lambda c: c.network.get_network(net_id), about=about
        )
        subnet = self._neutron.ask(
            f"read subnet {subnet_id}", lambda c: c.network.get_subnet(subnet_id), about=about
        )
        if subnet.network_id != network.id:
            raise Fatal(
                f"Subnet {subnet_id} of share network {share_network.id} is not one of its "
                f"network {net_id}; make a share network with two that belong together.",
                object=about,
                field="neutron_subnet_id",
                code=ErrorCode.NETWORK_FAILED,
            )
        return Place(network, subnet)

    def _configured(self, about: str) -> Place:
        """Look up the backend's own network and subnet."""
        named, wanted = self.options.neutron_net, self.options.neutron_subnet
        assert named is not None, "checked when the helper was made"
        network: Network = only(
            "network",
            named,
            self._neutron.ask(
                f"look for network {named}",
                lambda c: [*c.network.networks(id=named), *c.network.networks(name=named)],
                about=about,
            ),
            about,
        )
        subnets = self._neutron.ask(
            f"list the subnets of network {named}",
            lambda c: list(c.network.subnets(network_id=network.id)),
            about=about,
        )
        if wanted is not None:
            subnets = [subnet for subnet in subnets if wanted in {subnet.id, subnet.name}]
        return Place(network, only("subnet", wanted or f"of network {named}", subnets, about))

    def _ports(
        self, context: RequestContext, server: ShareServer, place: Place, amount: int
    ) -> list[Port]:
        """Find or create the wanted ports; delete all other ports of the server."""
        wanted = [f"sharewright-{server.id}-{number}" for number in range(amount)]
        kept: dict[str, Port] = {}
        for port in self._held(server):
            if port.name in wanted and port.name not in kept and place.has(port):
                kept[port.name] = port
            else:
                self._delete(context, server, port)
        for name in wanted:
            if name not in kept:
                kept[name] = self._make(context, server, place, name)
                failpoint("neutron.after_port")
            self._tag(context, server, kept[name])
            self._check_binding(server, kept[name])
        return [kept[name] for name in wanted]

    def _make(self, context: RequestContext, server: ShareServer, place: Place, name: str) -> Port:
        attributes = {
            "network_id": place.network.id,
            "fixed_ips": [{"subnet_id": place.subnet.id}],
            "name": name,
            "device_id": server.id,
            "device_owner": DEVICE_OWNER,
            "mac_address": mac_address(name),
        }
        if self.options.binding_host is not None:
            attributes["binding:host_id"] = self.options.binding_host
        if self.options.security_groups is not None:
            attributes["security_groups"] = list(self.options.security_groups)
        about = ObjectKind.SHARE_SERVER.ref(server.id)
        try:
            return self._neutron.change(
                f"make port {name} on network {place.network.id}",
                lambda c: c.network.create_port(**attributes),
                about=about,
                guard=context.guard,
            )
        except Taken as error:
            # An earlier attempt's port arrived after we had looked.
            for port in self._held(server):
                if port.name == name and place.has(port):
                    return port
            raise error from None

    def _held(self, server: ShareServer) -> list[Port]:
        """Find the server's ports: Nova overwrites the device id, and a port's tags come last."""

        def find(connection: Connection) -> Iterator[Port]:
            yield from connection.network.ports(device_id=server.id)
            yield from connection.network.ports(tags=_server_tag(server))

        found = self._neutron.ask(
            f"list the ports of share server {server.id}",
            lambda c: {port.id: port for port in find(c)},
            about=ObjectKind.SHARE_SERVER.ref(server.id),
        )
        return sorted(found.values(), key=lambda port: (port.name, port.id))

    def _tag(self, context: RequestContext, server: ShareServer, port: Port) -> None:
        tags = {TAG, _server_tag(server)}
        if tags <= set(port.tags):
            return
        self._neutron.change(
            f"tag port {port.name}",
            lambda c: c.network.set_tags(port, sorted(tags | set(port.tags))),
            about=ObjectKind.SHARE_SERVER.ref(server.id),
            guard=context.guard,
        )

    def _check_binding(self, server: ShareServer, port: Port) -> None:
        if port.binding_vif_type == BINDING_FAILED:
            raise Fatal(
                f"Neutron could not bind port {port.name} on host {port.binding_host_id}: none of "
                f"its mechanism drivers serves network {port.network_id} there; correct the "
                f"backend's binding_host or the host's agent.",
                object=ObjectKind.SHARE_SERVER.ref(server.id),
                code=ErrorCode.NETWORK_FAILED,
            )

    def _delete(self, context: RequestContext, server: ShareServer, port: Port) -> None:
        self._neutron.change(
            f"delete port {port.name}",
            lambda c: c.network.delete_port(port.id, ignore_missing=True),
            about=ObjectKind.SHARE_SERVER.ref(server.id),
            guard=context.guard,
        )
        failpoint("neutron.after_port_deleted")

    def _info(self, place: Place, ports: list[Port]) -> NetworkInfo:
        network, subnet = place
        gateway = IPAddress(subnet.gateway_ip) if subnet.gateway_ip else None
        pool = Pool(IPNetwork(subnet.cidr), gateway, ())
        flat = network_info(
            pool,
            [place.address(port) for port in ports],
            attributes={"domain": f"neutron:{network.id}", "subnet": subnet.id},
        )
        kind, number = self._segment(network)
        return replace(
            flat,
            ports=tuple(port.id for port in ports),
            mac_addresses=tuple(port.mac_address for port in ports),
            routes=tuple(Route(r["destination"], r["nexthop"]) for r in subnet.host_routes or ()),
            segmentation_type=kind,
            segmentation_id=number,
            mtu=network.mtu,
        )

    def _segment(self, network: Network) -> tuple[str | None, int | None]:
        """Return what separates the network from others; flat backends can do without."""
        segments = [
            (
                s["provider:network_type"],
                s["provider:physical_network"],
                s["provider:segmentation_id"],
            )
            for s in network.segments or ()
        ] or [
            (
                network.provider_network_type,
                network.provider_physical_network,
                network.provider_segmentation_id,
            )
        ]
        physical = self.options.physical_network
        chosen = [s for s in segments if physical in {None, s[1]}] or [(None, None, None)]
        kind, _, number = chosen[0]
        if kind is None and not self._flat:
            raise Fatal(
                f"The segment of network {network.id} is not shown to the user of backend "
                f"{self.backend.name}, or it has none on the backend's physical_network; give "
                f"the user an administrator's role in Neutron, or correct the option.",
                object=ObjectKind.BACKEND.ref(self.backend.name),
                code=ErrorCode.NETWORK_FAILED,
            )
        return kind, number


def mac_address(name: str) -> str:
    """Derive a locally administered MAC address from a port's name."""
    tail = hashlib.sha256(name.encode()).digest()[:5]
    return ":".join(f"{byte:02x}" for byte in (0x06, *tail))


def _server_tag(server: ShareServer) -> str:
    return f"{_SERVER_TAG}{server.id}"


def _server_of(port: Port) -> str | None:
    """Return the id of a port's share server, from its tag or (if not tagged yet) its name."""
    for tag in port.tags:
        if tag.startswith(_SERVER_TAG):
            return str(tag.removeprefix(_SERVER_TAG))
    named = _NAME.fullmatch(port.name)
    return named[1] if named is not None and port.device_owner == DEVICE_OWNER else None


def _size(first: str, last: str) -> int:
    return int(IPAddress(last)) - int(IPAddress(first)) + 1


def _check_options(backend: BackendContext, options: NeutronOptions, *, flat: bool) -> None:
    given = options.model_fields_set
    if flat:
        if options.neutron_net is None:
            raise ConfigurationError(
                f"Backend {backend.name}: mode {backend.mode} puts all share servers on one "
                f"network; name it as the network helper's neutron_net."
            )
        misplaced = sorted(given & set(ManagedOptions.own_names()))
    else:
        misplaced = sorted(given & {"neutron_net", "neutron_subnet"})
    if misplaced:
        raise ConfigurationError(
            f"Backend {backend.name}: the network helper's {', '.join(misplaced)} cannot be "
            f"used in mode {backend.mode}; leave it out, or change the mode."
        )
