"""Networks that the Neutron helper makes itself: one a share network, for all of its servers.

Neutron has no unique names, and two builders may begin at once, so a network is used only once it
is published: its maker tags it ``sharewright-ready`` after a listing, made after it had made its
own, has shown no other. Of two makers each sees the other or one is first; the one with the larger
id takes its network back. What is last out tags the network before it looks for ports, and who
makes a port looks for that tag afterwards: one of the two sees the other and gives way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from netaddr import AddrFormatError, IPAddress, IPNetwork
from openstack.connection import Connection
from openstack.network.v2.network import Network
from openstack.network.v2.port import Port
from openstack.network.v2.router import Router
from openstack.network.v2.subnet import Subnet
from pydantic import Field, field_validator

from worker.errors import ErrorCode, Fatal, NotReady, ObjectKind
from worker.failpoints import failpoint
from worker.helpers.network.base import AddressStore
from worker.model import OwnedResource, OwnerKind, RequestContext, ShareNetwork, ShareServer
from worker.systems.openstack.client import (
    Missing,
    OpenStack,
    OpenStackOptions,
    Taken,
    only,
    seconds,
)

TAG: Final = "sharewright"
DEVICE_OWNER: Final = "sharewright:share-server"
READY: Final = "sharewright-ready"
LEAVING: Final = "sharewright-leaving="
"""Prefix of a network's tag, before the id of a server that checks whether it is the last one."""
LOOK_AGAIN_SECONDS: Final = 1.0
_PREFIX: Final = "sharewright-"
_MADE_FOR: Final = "made for share server "
_BITS: Final = {4: 32, 6: 128}


class ManagedOptions(OpenStackOptions):
    """How networks for share networks of kind ``managed`` are made."""

    managed_cidrs: tuple[str, ...] = Field(
        (),
        description="`managed_multi_svm`: what subnets are cut from, for share networks that name "
        "no cidr. No two get the same.",
    )
    managed_prefix_length: int = Field(
        24, ge=1, le=126, description="`managed_multi_svm`: the size of such a subnet."
    )
    router: bool = Field(
        True, description="`managed_multi_svm`: whether a network gets a router of its own."
    )
    external_network: str | None = Field(
        None, description="`managed_multi_svm`: the routers' external gateway, by id or name."
    )

    @classmethod
    def own_names(cls) -> tuple[str, ...]:
        """The options that mean something in managed mode only."""
        return ("managed_cidrs", "managed_prefix_length", "router", "external_network")

    @field_validator("managed_cidrs")
    @classmethod
    def _are_cidrs(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        networks: list[IPNetwork] = []
        for text in given:
            try:
                network = IPNetwork(text)
            except (AddrFormatError, ValueError) as error:
                raise ValueError(f"{text!r} is not a CIDR such as 10.64.0.0/16") from error
            if network.ip != network.network:
                raise ValueError(f"{text} has host bits set; write {network.cidr}")
            if any(network in other or other in network for other in networks):
                raise ValueError(f"{text} overlaps another of managed_cidrs")
            networks.append(network)
        return given


class Place(NamedTuple):
    """Network, subnet and segment on which ports are created."""

    network: Network
    subnet: Subnet

    def has(self, port: Port) -> bool:
        """Whether a port is here."""
        return bool(port.network_id == self.network.id) and any(
            fixed["subnet_id"] == self.subnet.id for fixed in port.fixed_ips
        )

    def address(self, port: Port) -> str:
        """Return the address that a port has here."""
        return str(
            next(f["ip_address"] for f in port.fixed_ips if f["subnet_id"] == self.subnet.id)
        )


class _Named(Protocol):
    name: Any


Thing = TypeVar("Thing", bound=_Named)


def busy(share_network: ShareNetwork) -> NotReady:
    """Say that another server's builder has the share network's network in hand."""
    return NotReady(
        f"The network of share network {share_network.id} is being made or removed for another "
        f"share server.",
        retry_after=LOOK_AGAIN_SECONDS,
    )


class ManagedNetworks:
    """Creates and removes the networks of share networks."""

    def __init__(
        self, options: ManagedOptions, neutron: OpenStack, addresses: AddressStore
    ) -> None:
        self._options = options
        self._neutron = neutron
        self._addresses = addresses

    def external_network(self, about: str) -> Network | None:
        """Look for the network behind the routers, if one is configured."""
        named = self._options.external_network
        if named is None:
            return None
        found = self._neutron.ask(
            f"look for network {named}",
            lambda c: [*c.network.networks(id=named), *c.network.networks(name=named)],
            about=about,
        )
        return only("network", named, found, about)

    def ensure(
        self, context: RequestContext, server: ShareServer, share_network: ShareNetwork
    ) -> Place:
        """Find or create the network of a share network.

        Raises :class:`~worker.errors.NotReady` while another builder makes or removes it.
        """
        networks = self._networks(share_network.id)
        if not any(_is_published(network) or _is_mine(network, server) for network in networks):
            self._make(context, server, share_network)
            failpoint("neutron.after_network")
            networks = self._networks(share_network.id)
        mine = [network for network in networks if _is_mine(network, server)]
        published = [network for network in networks if _is_published(network)]
        if published and published[0] not in mine:
            self._take_back(context, share_network.id, mine)
            return self._published(published[0], share_network)
        if not mine:
            raise busy(share_network)
        if len(mine) < len(networks):
            if mine[0] is not networks[0]:
                self._take_back(context, share_network.id, mine)
            raise busy(share_network)
        self._take_back(context, share_network.id, mine[1:])
        return self._finish(context, mine[0], share_network)

    def stays(self, network: Network, server: ShareServer) -> bool:
        """Whether, after the server's ports were made, nobody is removing their network."""
        try:
            now = self._neutron.ask(
                f"read network {network.id}",
                lambda c: c.network.get_network(network.id),
                about=ObjectKind.SHARE_SERVER.ref(server.id),
            )
        except Missing:
            return False
        return _is_published(now) and not _is_left(now)

    def remove_unused(
        self, context: RequestContext, server: ShareServer, share_network_id: str
    ) -> None:
        """Remove the network of a share network when this server was its last."""
        for network in self._networks(share_network_id):
            if _is_published(network):
                if self._is_last_out(context, server, network):
                    self._remove(context, share_network_id, network)
            elif _is_mine(network, server) or _is_left(network):
                self._remove(context, share_network_id, network)

    def owned(self, about: str) -> Iterator[OwnedResource]:
        """List networks and routers by their names, which they have from the beginning.

        One that was never published belongs to the share server that it was made for.
        """
        networks = self._neutron.ask(
            "list our networks", lambda c: _ours(c, c.network.networks), about=about
        )
        for network in networks:
            created = seconds(network.created_at)
            if _is_published(network) or not network.description.startswith(_MADE_FOR):
                owner = network.name.removeprefix(_PREFIX)
                yield OwnedResource("network", network.id, OwnerKind.SHARE_NETWORK, owner, created)
            else:
                owner = network.description.removeprefix(_MADE_FOR)
                yield OwnedResource("network", network.id, OwnerKind.SHARE_SERVER, owner, created)
        there = {network.id for network in networks}
        routers = self._neutron.ask(
            "list our routers", lambda c: _ours(c, c.network.routers), about=about
        )
        for router in routers:
            if router.description not in there:  # else it goes with its network
                yield OwnedResource(
                    *("router", router.id, OwnerKind.SHARE_NETWORK),
                    owner_id=router.name.removeprefix(_PREFIX),
                    created_at=seconds(router.created_at),
                )

    def remove_orphan(
        self, context: RequestContext, server: ShareServer, owned: OwnedResource
    ) -> None:
        """Remove a network as its last server would, or a router whose network is gone.

        Raises :class:`~worker.errors.NotReady` while somebody holds a port on the network.
        """
        if owned.kind == "router":
            self._neutron.change(
                f"delete router {owned.id}",
                lambda c: c.network.delete_router(owned.id, ignore_missing=True),
                about=ObjectKind.SHARE_NETWORK.ref(owned.owner_id),
                guard=context.guard,
            )
            return
        about = f"{owned.owner_kind} {owned.owner_id}"
        try:
            network = self._neutron.ask(
                f"read network {owned.id}",
                lambda c: c.network.get_network(owned.id),
                about=about,
            )
        except Missing:
            return
        if not _is_published(network) or self._is_last_out(context, server, network):
            self._remove(context, network.name.removeprefix(_PREFIX), network)

    def _networks(self, share_network_id: str) -> list[Network]:
        found = self._neutron.ask(
            f"look for the network of share network {share_network_id}",
            lambda c: list(c.network.networks(name=_name(share_network_id))),
            about=ObjectKind.SHARE_NETWORK.ref(share_network_id),
        )
        return sorted(found, key=lambda network: str(network.id))

    def _make(
        self, context: RequestContext, server: ShareServer, share_network: ShareNetwork
    ) -> None:
        self._neutron.change(
            f"make a network for share network {share_network.id}",
            lambda c: c.network.create_network(
                name=_name(share_network.id), description=_maker(server)
            ),
            about=ObjectKind.SHARE_NETWORK.ref(share_network.id),
            guard=context.guard,
        )

    def _published(self, network: Network, share_network: ShareNetwork) -> Place:
        if _is_left(network):
            raise busy(share_network)
        subnets = self._neutron.ask(
            f"read the subnet of network {network.id}",
            lambda c: list(c.network.subnets(network_id=network.id)),
            about=ObjectKind.SHARE_NETWORK.ref(share_network.id),
        )
        return Place(
            network, only("subnet", f"of network {network.id}", subnets, _tag(share_network.id))
        )

    def _take_back(
        self, context: RequestContext, share_network_id: str, networks: Sequence[Network]
    ) -> None:
        for network in networks:
            self._remove(context, share_network_id, network)

    def _finish(
        self, context: RequestContext, network: Network, share_network: ShareNetwork
    ) -> Place:
        """Add the missing subnet and router to our network, and publish it."""
        about = ObjectKind.SHARE_NETWORK.ref(share_network.id)
        cidr = share_network.cidr or self._cut(context, network, about)

        def subnet_of(connection: Connection) -> Subnet:
            for found in connection.network.subnets(network_id=network.id):
                return found
            without_gateway = {} if self._options.router else {"gateway_ip": None}
            return connection.network.create_subnet(
                network_id=network.id,
                name=_name(share_network.id),
                cidr=cidr,
                ip_version=IPNetwork(cidr).version,
                is_dhcp_enabled=False,
                **without_gateway,
            )

        subnet = self._neutron.change(
            f"make subnet {cidr} for share network {share_network.id}",
            subnet_of,
            about=about,
            guard=context.guard,
        )
        failpoint("neutron.after_subnet")
        if self._options.router:
            self._connect(context, network, subnet, share_network)
        if READY not in network.tags:
            self._neutron.change(
                f"tag network {network.id}",
                lambda c: c.network.set_tags(network, [TAG, _tag(share_network.id), READY]),
                about=about,
                guard=context.guard,
            )
        return Place(network, subnet)

    def _cut(self, context: RequestContext, network: Network, about: str) -> str:
        """Take a subnet that no other managed network has: the n-th of all that there are."""
        length = self._options.managed_prefix_length
        supernets = [IPNetwork(cidr) for cidr in self._options.managed_cidrs]
        counts = [1 << (length - net.prefixlen) for net in supernets if length >= net.prefixlen]
        if len(counts) < max(len(supernets), 1):
            raise Fatal(
                f"The {about.replace('_', ' ')} names no cidr, and the backend's managed_cidrs "
                f"have none of prefix length {length}; name a cidr, or set managed_cidrs.",
                object=about,
                code=ErrorCode.CONFIGURATION,
            )
        context.guard()
        digest = hashlib.sha256(repr((self._options.managed_cidrs, length)).encode()).hexdigest()
        domain = f"neutron-cidrs:{digest[:32]}"
        # The store keeps numbers as addresses; an IPv6 address can hold any subnet's number.
        (taken,) = self._addresses.take(domain, ((0, sum(counts) - 1),), 6, network.id, 1)
        number = int(IPAddress(taken))
        for supernet, count in zip(supernets, counts, strict=True):
            if number < count:
                first = supernet.first + (number << (_BITS[supernet.version] - length))
                return f"{IPAddress(first, supernet.version)}/{length}"
            number -= count
        raise AssertionError("the store allocates numbers of the range only")

    def _connect(
        self,
        context: RequestContext,
        network: Network,
        subnet: Subnet,
        share_network: ShareNetwork,
    ) -> None:
        """Give the subnet a router."""
        about, tag = f"share_network {share_network.id}", _tag(share_network.id)
        external = self.external_network(about)
        gateway = {"external_gateway_info": {"network_id": external.id}} if external else {}

        def connect(connection: Connection) -> None:
            routers = _routers(connection, network)
            router = routers[0] if routers else None
            if router is None:
                router = connection.network.create_router(
                    name=network.name, description=network.id, **gateway
                )
                failpoint("neutron.after_router")
            connection.network.set_tags(router, [TAG, tag])
            if not list(connection.network.ports(device_id=router.id, network_id=network.id)):
                connection.network.add_interface_to_router(router, subnet=subnet.id)

        self._neutron.change(
            f"make a router for network {network.id}", connect, about=about, guard=context.guard
        )

    def _is_last_out(self, context: RequestContext, server: ShareServer, network: Network) -> bool:
        """Check whether a published network is unused; if so, keep others from joining it."""
        if self._is_used(network, server):
            return False
        about = ObjectKind.SHARE_SERVER.ref(server.id)
        mark = f"{LEAVING}{server.id}"
        self._neutron.change(
            f"tag network {network.id}",
            lambda c: network.add_tag(c.network, mark),
            about=about,
            guard=context.guard,
        )
        failpoint("neutron.after_leaving")
        stays = self._is_used(network, server)
        # Without the tag that goes now, it is either in use again or nobody's for ever.
        self._neutron.change(
            f"take a tag from network {network.id}",
            lambda c: network.remove_tag(c.network, mark if stays else READY),
            about=about,
            guard=context.guard,
        )
        return not stays

    def _is_used(self, network: Network, server: ShareServer) -> bool:
        return self._neutron.ask(
            f"list the ports of network {network.id}",
            lambda c: any(
                port.device_owner == DEVICE_OWNER or TAG in port.tags
                for port in c.network.ports(network_id=network.id)
            ),
            about=ObjectKind.SHARE_SERVER.ref(server.id),
        )

    def _remove(self, context: RequestContext, share_network_id: str, network: Network) -> None:
        """Remove a network that is not published (any more), with all that belongs to it.

        Raises :class:`~worker.errors.NotReady` while somebody who has not yet seen that it is
        going holds a port on it.
        """
        about = ObjectKind.SHARE_NETWORK.ref(share_network_id)

        def remove(connection: Connection) -> None:
            neutron = connection.network
            for router in _routers(connection, network):
                for port in neutron.ports(device_id=router.id, network_id=network.id):
                    neutron.remove_interface_from_router(router, port=port.id)
                neutron.delete_router(router.id, ignore_missing=True)
            failpoint("neutron.after_router_deleted")
            for subnet in neutron.subnets(network_id=network.id):
                neutron.delete_subnet(subnet.id, ignore_missing=True)

        doing = f"remove network {network.id} of share network {share_network_id}"
        try:
            self._neutron.change(doing, remove, about=about, guard=context.guard)
            context.guard()
            self._addresses.release(network.id)
            self._neutron.change(
                doing,
                lambda c: c.network.delete_network(network.id, ignore_missing=True),
                about=about,
                guard=context.guard,
            )
        except (Taken, Missing) as error:
            raise NotReady(
                f"{error.message} It is looked at again.", retry_after=LOOK_AGAIN_SECONDS
            ) from error


def _routers(connection: Connection, network: Network) -> list[Router]:
    """List the routers that were made for a network, lowest id first."""
    named = connection.network.routers(name=network.name)
    return sorted(
        (router for router in named if router.description == network.id),
        key=lambda router: str(router.id),
    )


def _ours(connection: Connection, every: Callable[..., Iterable[Thing]]) -> list[Thing]:
    """What the backend's own project has under names such as ours."""
    mine = every(project_id=connection.current_project_id)
    return [thing for thing in mine if str(thing.name).startswith(_PREFIX)]


def _name(share_network_id: str) -> str:
    return f"{_PREFIX}{share_network_id}"


def _tag(share_network_id: str) -> str:
    return f"share_network={share_network_id}"


def _maker(server: ShareServer) -> str:
    return f"{_MADE_FOR}{server.id}"


def _is_mine(network: Network, server: ShareServer) -> bool:
    return bool(network.description == _maker(server)) and not _is_left(network)


def _is_published(network: Network) -> bool:
    return READY in network.tags


def _is_left(network: Network) -> bool:
    """Whether somebody may be removing it."""
    return any(tag.startswith(LEAVING) for tag in network.tags)
