"""The fake network helper."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import ClassVar

from netaddr import IPAddress, IPNetwork
from pydantic import Field

from worker.addressing import Pool, network_info, parse_pool, parse_subnet, share_network_pool
from worker.errors import (
    ConfigurationError,
    ErrorCode,
    Fatal,
    InvalidRequest,
    ObjectKind,
    Retryable,
)
from worker.helpers.network.base import AddressStore, NetworkHelper
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
from worker.plugin import Audit, BackendContext, Options
from worker.systems.fake_world import Change, Fake, FakeOptions


class FakeNetworkOptions(FakeOptions):
    """Options of the fake network helper."""

    first_network: str = Field(
        "10.0.0.0/24", description="Subnet of the first share network; the next ones follow it."
    )
    segmentation_type: str = Field(
        "vlan", description="Type of the segments in `managed_multi_svm` mode."
    )
    first_segmentation_id: int = Field(
        100, ge=1, description="Segmentation id of the first network; the next ones follow."
    )
    mtu: int = Field(1500, ge=576, description="MTU reported in `managed_multi_svm` mode.")


class FakeNetworkAudit(Audit):
    """Lists and removes the ports and networks in the fake world."""

    def owned(self: Fake, context: RequestContext) -> Iterable[OwnedResource]:
        """List all ports and networks, of all backends: they do not record their backend."""
        with self.world.call(
            "owned_by_network", self.backend.name, context, code=ErrorCode.NETWORK_FAILED
        ) as change:
            ports = change.all("SELECT id, server FROM ports")
            networks = change.all("SELECT domain FROM networks")
        return [
            *(
                OwnedResource("port", row["id"], OwnerKind.SHARE_SERVER, row["server"])
                for row in ports
            ),
            *(
                OwnedResource("network", domain, OwnerKind.SHARE_NETWORK, domain.rpartition(":")[2])
                for (domain,) in networks
            ),
        ]

    def remove_orphan(self: Fake, context: RequestContext, owned: OwnedResource) -> None:
        """Remove it; a network that has ports is refused."""
        with self.world.call(
            "remove_orphan", owned.id, context, code=ErrorCode.NETWORK_FAILED
        ) as change:
            if owned.kind == "port":
                change.write("DELETE FROM ports WHERE id = ?", owned.id)
            else:
                if change.one("SELECT id FROM ports WHERE domain = ?", owned.id) is not None:
                    raise Retryable(f"There are ports on network {owned.id}; they go first.")
                change.write("DELETE FROM networks WHERE domain = ?", owned.id)


class FakeNetworkHelper(FakeNetworkAudit, NetworkHelper):
    """Addresses that are rows: each share network gets a subnet, each server ports in it.

    A share network that names addresses is served from those, in flat mode only where the backend
    says so. A network goes with its last port.
    """

    OptionsModel: ClassVar[type[Options]] = FakeNetworkOptions
    kinds: ClassVar[frozenset[NetworkKind]] = frozenset(NetworkKind) - {NetworkKind.NONE}
    modes: ClassVar[frozenset[DriverMode]] = frozenset(
        {DriverMode.FLAT_MULTI_SVM, DriverMode.MANAGED_MULTI_SVM}
    )
    options: FakeNetworkOptions

    def __init__(
        self, backend: BackendContext, options: FakeNetworkOptions, addresses: AddressStore
    ) -> None:
        super().__init__(backend, options, addresses)
        self.world = options.world_of(backend)
        self._managed = backend.mode is DriverMode.MANAGED_MULTI_SVM
        try:
            self._first = parse_subnet(options.first_network, "first_network")
        except InvalidRequest as error:
            raise ConfigurationError(
                f"Backend {backend.name}, network helper option first_network: {error.message}"
            ) from error

    def allocate_network(
        self,
        context: RequestContext,
        share_server: ShareServer,
        share_network: ShareNetwork,
        amount_of_ports: int,
    ) -> NetworkInfo:
        """Take ports for the share server, or find those that it holds."""
        with self.world.call(
            "allocate_network",
            share_server.id,
            context,
            related=(share_network.id, share_server.project_id),
            delay=self.options.delay_of("allocate_network"),
            code=ErrorCode.NETWORK_FAILED,
        ) as change:
            domain, pool, segmentation_id = self._network(change, share_network)
            _take(change, domain, pool, share_server, amount_of_ports)
            ports = change.all(
                "SELECT * FROM ports WHERE domain = ? AND server = ? ORDER BY ordinal",
                domain,
                share_server.id,
            )
        return replace(
            network_info(pool, [port["address"] for port in ports], attributes={"domain": domain}),
            ports=tuple(port["id"] for port in ports),
            mac_addresses=tuple(port["mac"] for port in ports),
            segmentation_type=self.options.segmentation_type if self._managed else None,
            segmentation_id=segmentation_id,
            mtu=self.options.mtu if self._managed else None,
        )

    def deallocate_network(self, context: RequestContext, share_server: ShareServer) -> None:
        """Remove the server's ports, and networks that have none left."""
        with self.world.call(
            "deallocate_network",
            share_server.id,
            context,
            related=(share_server.share_network_id, share_server.project_id),
            delay=self.options.delay_of("deallocate_network"),
            code=ErrorCode.NETWORK_FAILED,
        ) as change:
            ports = change.all("SELECT id, domain FROM ports WHERE server = ?", share_server.id)
            if not ports:
                return
            if change.one("SELECT id FROM servers WHERE id = ?", share_server.id):
                raise Fatal(
                    f"The ports of share server {share_server.id} are in use: it still exists; "
                    f"delete it first.",
                    object=ObjectKind.SHARE_SERVER.ref(share_server.id),
                    code=ErrorCode.NETWORK_FAILED,
                )
            change.write("DELETE FROM ports WHERE server = ?", share_server.id)
            for domain in {port["domain"] for port in ports}:
                change.write(
                    "DELETE FROM networks WHERE domain = ?"
                    " AND NOT EXISTS (SELECT 1 FROM ports WHERE ports.domain = networks.domain)",
                    domain,
                )

    def _network(self, change: Change, share_network: ShareNetwork) -> tuple[str, Pool, int | None]:
        """Find or make the share network's network: its domain, pool and segment."""
        pool = self._named_pool(share_network)
        owner = "share_network" if pool else self.backend.name
        domain = f"{owner}:{share_network.id}"
        network = change.one("SELECT * FROM networks WHERE domain = ?", domain)
        if network is None:
            number = None if pool else _next(change, "number", 0)
            subnet = pool.subnet if pool else _nth(self._first, number or 0)
            first = self.options.first_segmentation_id
            change.write(
                "INSERT INTO networks (domain, number, cidr, segmentation_id) VALUES (?, ?, ?, ?)",
                domain,
                number,
                str(subnet),
                _next(change, "segmentation_id", first) if self._managed else None,
            )
            network = change.one("SELECT * FROM networks WHERE domain = ?", domain)
        assert network is not None
        return domain, pool or _whole(IPNetwork(network["cidr"])), network["segmentation_id"]

    def _named_pool(self, share_network: ShareNetwork) -> Pool | None:
        """Return the addresses that the share network names, if this backend uses them."""
        if not (self._managed or self.backend.share_network_addresses):
            return None
        try:
            if share_network.kind is NetworkKind.FLAT_POOL:
                return share_network_pool(share_network)
            if share_network.kind is NetworkKind.MANAGED and share_network.cidr:
                return _whole(parse_subnet(share_network.cidr, "cidr"))
        except InvalidRequest as error:
            raise Fatal(
                f"The addresses of share network {share_network.id} cannot be used: "
                f"{error.message}",
                object=ObjectKind.SHARE_NETWORK.ref(share_network.id),
                field=error.field,
                code=ErrorCode.NETWORK_FAILED,
            ) from error
        return None


def _whole(subnet: IPNetwork) -> Pool:
    """All of a subnet, its first host being the gateway where there is room for one."""
    gateway = str(subnet[1]) if subnet.size > 2 else None  # noqa: PLR2004 - RFC 3021, RFC 6164
    return parse_pool([str(subnet)], subnet=str(subnet), gateway=gateway)


def _nth(first: IPNetwork, number: int) -> IPNetwork:
    """The subnet that comes ``number`` subnets of the same size after the first."""
    return first.next(number) if number else first


def _next(change: Change, column: str, first: int) -> int:
    row = change.one(f"SELECT max({column}) + 1 AS next FROM networks")  # noqa: S608 - our own word
    return first if row is None or row["next"] is None else int(row["next"])


def _take(change: Change, domain: str, pool: Pool, share_server: ShareServer, amount: int) -> None:
    rows = change.all("SELECT address, server FROM ports WHERE domain = ?", domain)
    held = sum(row["server"] == share_server.id for row in rows)
    taken = {int(IPAddress(row["address"])) for row in rows}
    free = (n for low, high in pool.ranges for n in range(low, high + 1) if n not in taken)
    numbers = list(islice(free, max(amount - held, 0)))
    if len(numbers) < amount - held:
        raise Fatal(
            f"Share server {share_server.id} needs {amount - held} more addresses of {domain} and "
            f"{len(numbers)} of {pool.size} are free; delete shares or enlarge the pool.",
            object=ObjectKind.SHARE_SERVER.ref(share_server.id),
            code=ErrorCode.ADDRESSES_EXHAUSTED,
        )
    for ordinal, number in enumerate(numbers, held):
        change.write(
            "INSERT INTO ports (id, domain, address, number, mac, server, ordinal)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            f"port-{share_server.id}-{ordinal}",
            domain,
            str(IPAddress(number, 4 if pool.ip_version == 4 else 6)),  # noqa: PLR2004 - IP version
            f"{number:032x}",
            # Locally administered, and unique in its network as the address is.
            "fa:16:" + ":".join(f"{byte:02x}" for byte in (number & 0xFFFFFFFF).to_bytes(4)),
            share_server.id,
            ordinal,
        )
