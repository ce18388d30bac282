"""Share servers as network namespaces of this host (facts/datapath.md, "Network").

A server is the namespace ``sw-<server id>`` with one interface ``eth0``, whose other end is a
port of a bridge, and an nfs-ganesha inside. Each share network has a bridge of its own, made
with its first server and removed with its last, unless the backend names one that exists. The
host has no address on such a bridge and routes nothing to or from it, so what is attached to one
bridge reaches nothing else.

Interface names have 15 characters at most, so bridges and ports are named by a hash. A bridge
carries its share network's whole id as its alias; a port is ours exactly if our namespace has
its other end. A collision of hashes is therefore found, and refused.

To attach a client, put an interface on the bridge that the server's attribute ``bridge`` names.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import ClassVar, Final, cast

from pydantic import Field

from worker.errors import Fatal, NotReady, Retryable, StepError
from worker.failpoints import failpoint
from worker.helpers.compute.base import ComputeHelper, Reachable
from worker.model import (
    NetworkInfo,
    RequestContext,
    SecurityService,
    ShareNetwork,
    ShareServer,
    ShareServerDetails,
)
from worker.plugin import Options, Setting
from worker.systems.ganesha import Ganesha
from worker.systems.local import NAMESPACES, LocalShell
from worker.systems.shell import Guarded, Shell, locked

_PORT: Final = "swp"
_BRIDGE: Final = "swb"
_BRIDGES_LOCK: Final = "/run/lock/sharewright-bridges"
"""One lock for all bridges of the host: several backends may serve one share network."""
_COLLISION: Final = 65
_MISSING: Final = 66
_RETRY: Final = 2.0

# A bridge without an address still takes in what is sent to the host's other addresses:
# rp_filter drops all of it (no route leads back over the bridge), arp_ignore keeps it silent.
_JOIN: Final = """
bridge=$1 owner=$2 namespace=$3 port=$4 mtu=$5 mac=$6
if [ -n "$owner" ]; then
    if ! ip link show dev "$bridge" >/dev/null 2>&1; then
        ip link add name "$bridge" type bridge
    fi
    alias=$(cat "/sys/class/net/$bridge/ifalias")
    [ -z "$alias" ] || [ "$alias" = "$owner" ] || exit 65
    sysctl -qw "net.ipv6.conf.$bridge.disable_ipv6=1"
    for setting in forwarding=0 rp_filter=1 arp_ignore=8; do
        sysctl -qw "net.ipv4.conf.$bridge.$setting"
    done
    ip link set dev "$bridge" alias "$owner" up
fi
ip link show dev "$bridge" >/dev/null 2>&1 || exit 66
[ -e "/run/netns/$namespace" ] || ip netns add "$namespace"
if ! ip -n "$namespace" link show dev eth0 >/dev/null 2>&1; then
    ip link show dev "$port" >/dev/null 2>&1 && exit 65
    ip link add name "$port" type veth peer name eth0 netns "$namespace"
fi
sysctl -qw "net.ipv6.conf.$port.disable_ipv6=1"
if [ -n "$mtu" ]; then
    ip link set dev "$port" mtu "$mtu"
    ip -n "$namespace" link set dev eth0 mtu "$mtu"
fi
[ -z "$mac" ] || ip -n "$namespace" link set dev eth0 address "$mac"
ip link set dev "$port" master "$bridge" up
"""

# Processes first: a live one would keep the link. The link next: with the namespace alone it
# lingers, and its name with it. Bridges go with their last server's port.
_LEAVE: Final = """
namespace=$1 bridge=$2
if [ -e "/run/netns/$namespace" ]; then
    for _ in $(seq 200); do
        pids=$(ip netns pids "$namespace")
        [ -n "$pids" ] || break
        kill -KILL $pids 2>/dev/null || :
        sleep 0.01
    done
    if ip -n "$namespace" link show dev eth0 >/dev/null 2>&1; then
        ip -n "$namespace" link del dev eth0
    fi
    ip netns del "$namespace"
fi
if [ -n "$bridge" ] && [ -e "/sys/class/net/$bridge" ]; then
    ls "/sys/class/net/$bridge/brif" | grep -q '^swp' || ip link del dev "$bridge"
fi
"""


class NamespaceOptions(Options):
    """Options of the namespace helper."""

    bridge: str | None = Field(
        None,
        max_length=15,
        description="An existing bridge that every share server joins (a flat network that reaches "
        "the tenants). Without it, each share network gets an isolated bridge of its own.",
    )


class NamespaceComputeHelper(ComputeHelper, Reachable):
    """Makes share servers out of network namespaces, with an NFS server inside."""

    OptionsModel: ClassVar[type[Options]] = NamespaceOptions
    host_bound: ClassVar[bool] = True

    def __init__(self, setting: Setting, options: Options) -> None:
        super().__init__(setting, options)
        self._options = cast("NamespaceOptions", options)

    def get_share_server(
        self,
        context: RequestContext,
        share_server: ShareServer,
        share_network: ShareNetwork,
        network_info: NetworkInfo,
        security_services: Sequence[SecurityService],
    ) -> ShareServerDetails:
        """As :meth:`ComputeHelper.get_share_server`; repeated, it repairs what a reboot took."""
        del security_services  # NFS with AUTH_SYS asks nobody
        namespace = namespace_name(share_server.id)
        bridge = self._options.bridge or bridge_name(share_network.id)
        host = Guarded(LocalShell(), context.guard)
        try:
            self._plug(host, bridge, share_server, share_network, network_info)
            failpoint("get_share_server.after_plug")
            self._address(host, namespace, network_info)
            ganesha = self._ganesha(context, share_server, network_info)
            failpoint("get_share_server.after_address")
            ganesha.ensure_running()
        except Retryable as error:
            raise NotReady(
                f"Share server {share_server.id} does not serve yet: {error.message}",
                retry_after=_RETRY,
                share_server_id=namespace,
            ) from error
        except StepError as error:
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
        """As :meth:`ComputeHelper.delete_share_server`."""
        host = Guarded(LocalShell(), context.guard)
        namespace = namespace_name(share_server.id)
        own_bridge = self._options.bridge is None and share_server.share_network_id is not None
        bridge = bridge_name(str(share_server.share_network_id)) if own_bridge else ""
        done = locked(host, _BRIDGES_LOCK, _LEAVE, namespace, bridge)
        if done.exit_code != 0:
            raise Retryable(
                f"Share server {share_server.id} could not be removed: {done.stderr.strip()}",
                object=f"share_server {share_server.id}",
                share_server_id=namespace,
            )
        host.run(["rm", "-rf", "--one-file-system", self._directory(share_server.id)])

    def shell(self, share_server: ShareServer) -> Shell:
        """As :meth:`Reachable.shell`."""
        return LocalShell(namespace_name(share_server.id))

    def _plug(
        self,
        host: Shell,
        bridge: str,
        share_server: ShareServer,
        share_network: ShareNetwork,
        network_info: NetworkInfo,
    ) -> None:
        namespace = namespace_name(share_server.id)
        owner = "" if self._options.bridge else share_network.id
        mac = network_info.mac_addresses[0] if network_info.mac_addresses else ""
        mtu = "" if network_info.mtu is None else str(network_info.mtu)
        port = f"{_PORT}{_short(share_server.id)}"
        done = locked(host, _BRIDGES_LOCK, _JOIN, bridge, owner, namespace, port, mtu, mac)
        about = f"share_server {share_server.id}"
        if done.exit_code == _COLLISION:
            raise Fatal(
                f"The interface name {bridge} or {port} of share server {share_server.id} is used "
                f"by something else on this host; remove that, or ask again for a new server.",
                object=about,
            )
        if done.exit_code == _MISSING:
            raise Fatal(
                f"The bridge {bridge} does not exist on this host; make it, or correct the "
                f"backend's compute.bridge.",
                object=about,
            )
        if done.exit_code != 0:
            raise Fatal(
                f"Share server {share_server.id} could not be connected to {bridge}: "
                f"{done.stderr.strip()[-300:]}",
                object=about,
            )

    def _address(self, host: Shell, namespace: str, network_info: NetworkInfo) -> None:
        """Give the server its addresses and routes; nothing else configures its namespace."""
        if not network_info.addresses:
            raise Fatal(f"The network gave no address to share server {namespace}.")
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
        self, context: RequestContext, share_server: ShareServer, network_info: NetworkInfo
    ) -> Ganesha:
        several = len(network_info.addresses) > 1
        bind = "0.0.0.0" if several else network_info.addresses[0]  # noqa: S104 - all of its own
        shell = Guarded(self.shell(share_server), context.guard)
        return Ganesha(shell, self._directory(share_server.id), bind)

    def _directory(self, server_id: str) -> str:
        return f"{self.setting.state_dir}/servers/{server_id}"


def namespace_name(server_id: str) -> str:
    """Return the name of a share server's namespace, which is its outside id too."""
    name = f"sw-{server_id}"
    if "/" in name or not (NAMESPACES / name).name:
        raise Fatal(f"Share server id {server_id!r} cannot name a network namespace.")
    return name


def bridge_name(share_network_id: str) -> str:
    """Return the name of a share network's bridge."""
    return f"{_BRIDGE}{_short(share_network_id)}"


def _short(identifier: str) -> str:
    return hashlib.sha256(identifier.encode()).hexdigest()[:12]


def _plain(value: str) -> str:
    """An address or CIDR on a line of ``ip -batch``; anything else would be a command."""
    if not re.fullmatch(r"[0-9A-Fa-f:./]+", value):
        raise Fatal(f"{value!r} from the network helper is neither an address nor a CIDR.")
    return value
