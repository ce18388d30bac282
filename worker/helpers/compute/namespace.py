"""Share servers as network namespaces of this host (docs/facts.md, "Network namespaces").

A server is the namespace ``sw-<server id>`` with one interface ``eth0``, whose other end is a
port of a bridge, and an nfs-ganesha inside. Each share network has a bridge of its own, made
with its first server and removed with its last, unless the backend names one that exists. The
host has no address on such a bridge and routes nothing to or from it, so what is attached to one
bridge reaches nothing else.

Interface names have 15 characters at most, so bridges and ports are named by a hash. A bridge
carries its share network's whole id as its alias; a port is ours exactly if our namespace has
its other end. A collision of hashes is therefore found, and refused.

In managed mode the bridge is joined to those of the share network on other hosts, by VXLAN or
VLAN (:mod:`worker.systems.network.bridges`).

To attach a client, put an interface on the bridge that the server's attribute ``bridge`` names.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Final

from pydantic import Field, IPvAnyAddress

from worker.errors import (
    ConfigurationError,
    ErrorCode,
    Fatal,
    NotReady,
    ObjectKind,
    Retryable,
    StepError,
)
from worker.failpoints import failpoint
from worker.helpers.compute.base import ComputeHelper, Reachable, Watched
from worker.model import (
    DriverMode,
    NetworkInfo,
    Outage,
    OwnedResource,
    OwnerKind,
    RequestContext,
    SecurityService,
    ShareNetwork,
    ShareServer,
    ShareServerDetails,
)
from worker.plugin import Audit, BackendContext, Options, placeholder_server
from worker.systems.exports.ganesha import (
    Ganesha,
    check_directory,
    command_pattern,
    daemons,
    serving_below,
)
from worker.systems.exports.probe import NfsServer, hanging
from worker.systems.network.bridges import (
    Plug,
    Vlan,
    Vxlan,
    join,
    leave,
    remove_bridge,
    short,
    there,
)
from worker.systems.shell.base import Guarded, Shell
from worker.systems.shell.local import NAMESPACES, LocalShell

_NAMESPACE: Final = "sw-"
_PORT: Final = "swp"
_BRIDGE: Final = "swb"
_RETRY: Final = 2.0
PROBE_INTERVAL: Final = 60.0
"""Seconds between two probes of one file server: a hung one is restarted within about 75 s."""


class NamespaceOptions(Options):
    """Options of the namespace helper."""

    bridge: str | None = Field(
        None,
        max_length=15,
        description="An existing bridge that every share server joins (a flat network that reaches "
        "the tenants). Without it, each share network gets an isolated bridge of its own.",
    )
    underlay_address: IPvAnyAddress | None = Field(
        None,
        description="This host's own address on the network that carries VXLAN between hosts. "
        "Segments of type `vxlan` need it.",
    )
    peers: tuple[IPvAnyAddress, ...] = Field(
        (),
        description="The underlay addresses of the other hosts; this host's own among them is "
        "passed over, so the list may be the same everywhere.",
    )
    vxlan_port: int = Field(4789, ge=1, le=65535, description="UDP port of VXLAN.")
    vlan_parent: str | None = Field(
        None,
        max_length=15,
        description="The interface that carries VLANs between hosts (a trunk). Segments of type "
        "`vlan` need it.",
    )


class NamespaceComputeHelper(ComputeHelper, Reachable, Watched, Audit):
    """Makes share servers out of network namespaces, with an NFS server inside."""

    OptionsModel: ClassVar[type[Options]] = NamespaceOptions
    options: NamespaceOptions
    host_bound: ClassVar[bool] = True

    def __init__(self, backend: BackendContext, options: Options) -> None:
        super().__init__(backend, options)
        check_directory(self._directories)
        self._next_probe: dict[str, float] = {}
        if self.options.bridge and backend.mode is DriverMode.MANAGED_MULTI_SVM:
            raise ConfigurationError(
                f"Backend {backend.name}: in mode {backend.mode} each share network has a "
                f"segment of its own, and one bridge would join them all; leave bridge out."
            )

    def get_share_server(
        self,
        context: RequestContext,
        share_server: ShareServer,
        share_network: ShareNetwork,
        network_info: NetworkInfo,
        security_services: Sequence[SecurityService],
    ) -> ShareServerDetails:
        """Implement :meth:`ComputeHelper.get_share_server`; repairs the server after a reboot."""
        del security_services  # NFS with AUTH_SYS asks nobody
        namespace = namespace_name(share_server.id)
        bridge = self.options.bridge or bridge_name(share_network.id)
        host = Guarded(_host(), context.guard)
        try:
            self._end_stray(context, share_server, network_info)
            self._plug(host, bridge, share_server, share_network, network_info)
            failpoint("get_share_server.after_plug")
            self._address(host, namespace, network_info)
            inside = Guarded(_inside(share_server), context.guard)
            ganesha = self._ganesha(inside, share_server, network_info)
            failpoint("get_share_server.after_address")
            if share_server.details is not None and _hanging([share_server]):
                ganesha.stop()
            ganesha.ensure_running()
        except Retryable as error:
            raise NotReady(
                f"Share server {share_server.id} does not serve yet: {error.message}",
                retry_after=_RETRY,
                share_server_id=namespace,
            ) from error
        except StepError as error:
            error.object = ObjectKind.SHARE_SERVER.ref(share_server.id)
            error.share_server_id = namespace
            raise
        return ShareServerDetails(
            server_id=namespace,
            addresses=network_info.addresses,
            attributes={
                "namespace": namespace,
                "bridge": bridge,
                "ganesha": ganesha.directory,
                "ganesha_bind": ganesha.bind,
            },
        )

    def delete_share_server(self, context: RequestContext, share_server: ShareServer) -> None:
        """Implement :meth:`ComputeHelper.delete_share_server`."""
        host = Guarded(_host(), context.guard)
        namespace = namespace_name(share_server.id)
        owner = "" if self.options.bridge else share_server.share_network_id or ""
        try:
            leave(
                *(host, namespace, _port_name(share_server.id)),
                command_pattern(self._directory(share_server.id)),
                bridge=bridge_name(owner),
                owner=owner,
            )
        except Retryable as error:
            error.object = ObjectKind.SHARE_SERVER.ref(share_server.id)
            error.share_server_id = namespace
            raise
        host.run(["rm", "-rf", "--one-file-system", self._directory(share_server.id)])

    def outages(self, share_servers: Sequence[ShareServer]) -> Mapping[str, Outage]:
        """Implement :meth:`Watched.outages`."""
        serving = serving_below(_host(), self._directories)
        found: dict[str, Outage] = {}
        for server in share_servers:
            if not (NAMESPACES / namespace_name(server.id)).exists():
                found[server.id] = Outage.SERVER
            elif self._directory(server.id) not in serving:
                found[server.id] = Outage.FILE_SERVER
        due = [server for server in share_servers if server.id not in found and self._due(server)]
        found.update(dict.fromkeys(_hanging(due), Outage.FILE_SERVER))
        return found

    def _due(self, server: ShareServer) -> bool:
        """Return whether to probe a server now; this process then waits a minute to do so again."""
        now = time.monotonic()
        if self._next_probe.get(server.id, now) > now:
            return False
        self._next_probe[server.id] = now + PROBE_INTERVAL
        return True

    def shell(self, share_server: ShareServer) -> Shell:
        """Implement :meth:`Reachable.shell`."""
        return LocalShell(namespace_name(share_server.id))

    def owned(self, context: RequestContext) -> Iterator[OwnedResource]:  # noqa: ARG002 - it only reads
        """List the share servers of all backends on this host, and this backend's resources."""
        host = _host()
        server, network = OwnerKind.SHARE_SERVER, OwnerKind.SHARE_NETWORK
        host_has = there(host)
        for name in host_has.namespaces:
            if name.startswith(_NAMESPACE):
                yield OwnedResource("namespace", name, server, name.removeprefix(_NAMESPACE))
        for name, alias in host_has.links:
            if not name.startswith(_PORT):
                yield OwnedResource(
                    "bridge" if name.startswith(_BRIDGE) else "tunnel", name, network, alias
                )
            elif alias.startswith(_NAMESPACE):
                yield OwnedResource("port", name, server, alias.removeprefix(_NAMESPACE))
        parent = self._directory("").rstrip("/")
        for server_id in daemons(host, parent):
            yield OwnedResource("NFS server", server_id, server, server_id)
        made = host.run(["find", parent, "-mindepth", "1", "-maxdepth", "1"], check=False)
        for path in made.stdout.splitlines():
            yield OwnedResource("directory", path, server, path.rpartition("/")[2])

    def remove_orphan(self, context: RequestContext, owned: OwnedResource) -> None:
        """Remove the share server with all that belongs to it, or a share network's bridge."""
        if owned.owner_kind is OwnerKind.SHARE_SERVER:
            self.delete_share_server(context, placeholder_server(self.backend, owned))
            return
        host = Guarded(_host(), context.guard)
        remove_bridge(host, bridge_name(owned.owner_id), owned.owner_id)

    def _end_stray(
        self, context: RequestContext, share_server: ShareServer, network_info: NetworkInfo
    ) -> None:
        """Stop a daemon in a namespace without a name, which nobody can enter any more."""
        if (NAMESPACES / namespace_name(share_server.id)).exists():
            return
        stray = self._ganesha(Guarded(_host(), context.guard), share_server, network_info)
        if stray.exists():
            stray.stop()

    def _plug(
        self,
        host: Shell,
        bridge: str,
        share_server: ShareServer,
        share_network: ShareNetwork,
        network_info: NetworkInfo,
    ) -> None:
        plug = Plug(
            bridge=bridge,
            owner="" if self.options.bridge else share_network.id,
            tunnel=self._tunnel(network_info),
            mtu=network_info.mtu,
            mac=network_info.mac_addresses[0] if network_info.mac_addresses else None,
        )
        join(host, namespace_name(share_server.id), _port_name(share_server.id), plug)

    def _tunnel(self, network_info: NetworkInfo) -> Vxlan | Vlan | None:
        """What carries the segment to other hosts; an operator's bridge has that already."""
        options, number = self.options, network_info.segmentation_id
        if options.bridge or number is None:
            return None
        match network_info.segmentation_type:
            case Vxlan.type if options.underlay_address:
                local = str(options.underlay_address)
                peers = tuple(str(peer) for peer in options.peers if str(peer) != local)
                return Vxlan(number, local, peers, options.vxlan_port)
            case Vlan.type if options.vlan_parent:
                return Vlan(number, options.vlan_parent)
            case Vxlan.type | Vlan.type as known:
                missing = "underlay_address" if known == Vxlan.type else "vlan_parent"
                raise Fatal(
                    f"Segment {number} is of type {known} and backend {self.backend.name} "
                    f"does not say what carries it; set compute.{missing}.",
                    code=ErrorCode.CONFIGURATION,
                )
            case unknown:
                raise Fatal(
                    f"Segment {number} is of type {unknown}, which the namespace helper cannot "
                    f"build; use vxlan or vlan, or name a bridge that reaches it.",
                    code=ErrorCode.CONFIGURATION,
                )

    def _address(self, host: Shell, namespace: str, network_info: NetworkInfo) -> None:
        """Give the server its addresses and routes; nothing else configures its namespace."""
        if not network_info.addresses:
            raise Fatal(
                f"The network gave no address to share server {namespace}.",
                code=ErrorCode.NETWORK_FAILED,
            )
        no_check = " nodad" if network_info.ip_version == 6 else ""  # noqa: PLR2004 - IPv6
        lines = ["link set dev lo up", "link set dev eth0 up"]
        lines += [
            f"address replace {_plain(address)}/{network_info.prefix_length} dev eth0{no_check}"
            for address in network_info.addresses
        ]
        if network_info.gateway:
            lines.append(f"route replace default via {_plain(network_info.gateway)} dev eth0")
        lines += [
            f"route replace {_plain(route.destination)} via {_plain(route.nexthop)} dev eth0"
            for route in network_info.routes
        ]
        host.run(["ip", "-n", namespace, "-batch", "-"], stdin="\n".join(lines) + "\n")

    def _ganesha(
        self, shell: Shell, share_server: ShareServer, network_info: NetworkInfo
    ) -> Ganesha:
        several = len(network_info.addresses) > 1
        bind = "0.0.0.0" if several else network_info.addresses[0]  # noqa: S104 - all of its own
        return Ganesha(shell, self._directory(share_server.id), bind)

    def _directory(self, server_id: str) -> str:
        return f"{self._directories}/{server_id}"

    @property
    def _directories(self) -> str:
        return f"{self.backend.state_dir}/servers"


def _hanging(share_servers: Sequence[ShareServer]) -> frozenset[str]:
    """Return the ids of the share servers whose NFS server answers nothing."""
    return hanging(
        {
            server.id: NfsServer(namespace_name(server.id), server.network_info.addresses[0])
            for server in share_servers
            if server.network_info is not None
        }
    )


def _host() -> Shell:
    return LocalShell(failure=ErrorCode.COMPUTE_FAILED)


def _inside(share_server: ShareServer) -> Shell:
    return LocalShell(namespace_name(share_server.id), failure=ErrorCode.COMPUTE_FAILED)


def namespace_name(server_id: str) -> str:
    """Return the name of a share server's namespace, which is its external id too."""
    name = f"{_NAMESPACE}{server_id}"
    if "/" in name or not (NAMESPACES / name).name:
        raise Fatal(
            f"Share server id {server_id!r} cannot name a network namespace.",
            code=ErrorCode.COMPUTE_FAILED,
        )
    return name


def _port_name(server_id: str) -> str:
    return f"{_PORT}{short(server_id)}"


def bridge_name(share_network_id: str) -> str:
    """Return the name of a share network's bridge."""
    return f"{_BRIDGE}{short(share_network_id)}"


def _plain(value: str) -> str:
    """Return an address or CIDR for ``ip -batch``; refuse other text, which could be a command."""
    if not re.fullmatch(r"[0-9A-Fa-f:./]+", value):
        raise Fatal(
            f"{value!r} from the network helper is neither an address nor a CIDR.",
            code=ErrorCode.NETWORK_FAILED,
        )
    return value
