"""Bridges of one Linux host, the namespaces plugged into them, and their way to other hosts.

A bridge that is ours carries its owner (a share network's id) as its alias, as does the tunnel
that joins it to the same network's bridges on other hosts: a VXLAN interface or an 802.1Q
subinterface. Names are short, so they may be somebody else's: the alias tells. Everything is
read with ``ip``, never from /sys, which shows another network namespace than ours may be.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar, Final

from worker.errors import ErrorCode, Fatal, Retryable
from worker.systems.shell.base import Completed, Shell, locked

_LOCK: Final = "/run/lock/sharewright-bridges"
"""One lock for all bridges of the host: several backends may serve one share network."""
_COLLISION: Final = 65
_NO_BRIDGE: Final = 66
_NO_UNDERLAY: Final = 67
_NO_VLAN: Final = 68
_TWO_SEGMENTS: Final = 69
_NO_PARENT: Final = 70

_COMMON: Final = r"""
exists() { ip link show dev "$1" >/dev/null 2>&1; }
alias_of() { ip -o link show dev "$1" | sed -n 's/.*\\ *alias //p'; }
owned_by() {
    ip -o link show | awk -v tail="alias $1" '
        substr($0, length($0) - length(tail) + 1) == tail && $2 ~ /^sw[bxv]/ {
            sub(/[@:].*/, "", $2); print $2
        }'
}
claim() {
    [ -z "$(alias_of "$1")" ] || [ "$(alias_of "$1")" = "$2" ] || exit 65
    ip link set dev "$1" alias "$2"
    sysctl -qw "net.ipv6.conf.$1.disable_ipv6=1"
}
"""

# The port of a namespace that ended a moment ago lingers for some milliseconds.
# A bridge without an address still takes in what is sent to the host's other addresses:
# rp_filter drops all of it (no route leads back over the bridge), arp_ignore keeps it silent.
_JOIN: Final = (
    _COMMON
    + r"""
bridge=$1 owner=$2 namespace=$3 port=$4 mtu=$5 mac=$6 tunnel=$7 type=$8 id=$9
shift 9
if [ -n "$owner" ]; then
    exists "$bridge" || ip link add name "$bridge" type bridge
    claim "$bridge" "$owner"
    for setting in forwarding=0 rp_filter=1 arp_ignore=8; do
        sysctl -qw "net.ipv4.conf.$bridge.$setting"
    done
    ip link set dev "$bridge" up
fi
exists "$bridge" || exit 66
if [ -n "$tunnel" ]; then
    for link in $(owned_by "$owner"); do
        [ "$link" = "$bridge" ] || [ "$link" = "$tunnel" ] || exit 69
    done
    case $type in
    vxlan)
        local=$1 udp=$2
        shift 2
        [ -n "$(ip -o address show to "$local")" ] || exit 67
        exists "$tunnel" ||
            ip link add name "$tunnel" type vxlan id "$id" dstport "$udp" local "$local"
        claim "$tunnel" "$owner"
        everybody=00:00:00:00:00:00
        for peer in $(bridge fdb show dev "$tunnel" | sed -n "s/^$everybody dst \([^ ]*\).*/\1/p")
        do
            case " $* " in
            *" $peer "*) ;;
            *) bridge fdb del "$everybody" dev "$tunnel" dst "$peer" ;;
            esac
        done
        for peer in "$@"; do bridge fdb append "$everybody" dev "$tunnel" dst "$peer"; done
        ;;
    vlan)
        exists "$1" || exit 70
        if ! exists "$tunnel"; then
            said=$(ip link add link "$1" name "$tunnel" type vlan id "$id" 2>&1) || {
                case $said in *'Unknown device type'* | *'not supported'*) exit 68 ;; esac
                echo "$said" >&2
                exit 1
            }
        fi
        claim "$tunnel" "$owner"
        ;;
    esac
    [ -z "$mtu" ] || ip link set dev "$tunnel" mtu "$mtu"
    ip link set dev "$tunnel" master "$bridge" up
fi
[ -e "/run/netns/$namespace" ] || ip netns add "$namespace"
if ! ip -n "$namespace" link show dev eth0 >/dev/null 2>&1; then
    for _ in $(seq 25); do
        exists "$port" || break
        sleep 0.02
    done
    exists "$port" && exit 65
    ip link add name "$port" type veth peer name eth0 netns "$namespace"
fi
sysctl -qw "net.ipv6.conf.$port.disable_ipv6=1"
if [ -n "$mtu" ]; then
    ip link set dev "$port" mtu "$mtu"
    ip -n "$namespace" link set dev eth0 mtu "$mtu"
fi
[ -z "$mac" ] || ip -n "$namespace" link set dev eth0 address "$mac"
ip link set dev "$port" alias "$namespace" master "$bridge" up
"""
)

# Bridge and tunnel go with their last server's port.
_SWEEP: Final = r"""
[ -n "$owner" ] || exit 0
if exists "$bridge"; then
    ! ip -o link show master "$bridge" | grep -qE '^[0-9]+: swp' || exit 0
    [ -n "$(alias_of "$bridge")" ] || ip link del dev "$bridge"
fi
for link in $(owned_by "$owner"); do ip link del dev "$link"; done
"""

# Processes first: a live one would keep the link, even in a namespace whose name is gone. The
# link next: with the namespace alone it lingers, and its name with it.
_LEAVE: Final = (
    _COMMON
    + r"""
namespace=$1 port=$2 daemon=$3 bridge=$4 owner=$5
living() {
    [ ! -e "/run/netns/$namespace" ] || ip netns pids "$namespace"
    pgrep -xf "$daemon" || :
}
for _ in $(seq 200); do
    pids=$(living)
    [ -n "$pids" ] || break
    kill -KILL $pids 2>/dev/null || :
    sleep 0.01
done
if [ -e "/run/netns/$namespace" ]; then
    if ip -n "$namespace" link show dev eth0 >/dev/null 2>&1; then
        ip -n "$namespace" link del dev eth0
    fi
    ip netns del "$namespace"
fi
if exists "$port" && [ "$(alias_of "$port")" = "$namespace" ]; then ip link del dev "$port"; fi
"""
    + _SWEEP
)

_REMOVE_BRIDGE: Final = _COMMON + "bridge=$1 owner=$2\n" + _SWEEP

_LIST: Final = r"""
ls /run/netns 2>/dev/null | sed 's/^/namespace /'
ip -o link show | sed -n 's/^[0-9]*: \(sw[pbxv][^:@]*\)[:@].*\\ *alias \(.*\)$/link \1 \2/p'
"""


@dataclass(frozen=True, slots=True)
class Vxlan:
    """A VXLAN between this host (``local``) and others; what is not learned goes to all peers."""

    id: int
    local: str
    peers: tuple[str, ...]
    port: int

    type: ClassVar[str] = "vxlan"

    @property
    def name(self) -> str:
        """The interface's name: a host has one for each network identifier."""
        return f"swx{self.id}"

    @property
    def arguments(self) -> tuple[str, ...]:
        """What the script needs besides name, type and id."""
        return self.local, str(self.port), *self.peers


@dataclass(frozen=True, slots=True)
class Vlan:
    """An 802.1Q subinterface of a trunk."""

    id: int
    parent: str

    type: ClassVar[str] = "vlan"

    @property
    def name(self) -> str:
        """The interface's name, which is a hash: several trunks may have the same VLAN."""
        return f"swv{short(f'{self.parent}.{self.id}')}"

    @property
    def arguments(self) -> tuple[str, ...]:
        """What the script needs besides name, type and id."""
        return (self.parent,)


@dataclass(frozen=True, slots=True)
class Plug:
    """Where a namespace's ``eth0`` is plugged in.

    With an ``owner`` the bridge is ours: made when missing, removed with its last port. Without
    one it must exist.
    """

    bridge: str
    owner: str
    tunnel: Vxlan | Vlan | None = None
    mtu: int | None = None
    mac: str | None = None


def join(shell: Shell, namespace: str, port: str, plug: Plug) -> None:
    """Make the namespace, plug it into its bridge, and join the bridge to those of other hosts.

    Repeated, it repairs what is missing. Raises :class:`~worker.errors.Fatal` with a sentence
    that says what is in the way.
    """
    tunnel = plug.tunnel
    done = locked(
        shell,
        _LOCK,
        _JOIN,
        *(plug.bridge, plug.owner, namespace, port),
        *("" if plug.mtu is None else str(plug.mtu), plug.mac or ""),
        *((tunnel.name, tunnel.type, str(tunnel.id), *tunnel.arguments) if tunnel else [""] * 3),
    )
    if done.exit_code != 0:
        raise _refusal(done, namespace, port, plug)


def leave(shell: Shell, namespace: str, port: str, daemon: str, *, bridge: str, owner: str) -> None:
    """End the namespace and what runs in it; remove the owner's bridge that has no port left.

    ``daemon`` is the pattern of its file server's command line: one whose namespace has lost its
    name is found by that. Gone already is fine. Without an owner the bridge stays. Raises
    :class:`~worker.errors.Retryable` when something could not be removed.
    """
    done = locked(shell, _LOCK, _LEAVE, namespace, port, daemon, bridge, owner)
    if done.exit_code != 0:
        raise Retryable(
            f"The namespace {namespace} could not be removed: {done.stderr.strip()[-300:]}"
        )


def remove_bridge(shell: Shell, bridge: str, owner: str) -> None:
    """Remove the owner's bridge and tunnel, unless a share server's port is on the bridge.

    Raises :class:`~worker.errors.Retryable` when it cannot be removed.
    """
    done = locked(shell, _LOCK, _REMOVE_BRIDGE, bridge, owner)
    if done.exit_code != 0:
        raise Retryable(f"The bridge {bridge} could not be removed: {done.stderr.strip()[-300:]}")


@dataclass(frozen=True, slots=True)
class There:
    """What this host has: namespaces, and our links with the aliases that say whose they are."""

    namespaces: tuple[str, ...]
    links: tuple[tuple[str, str], ...]


def there(shell: Shell) -> There:
    """Look at the host; links without an alias are nobody's."""
    lines = shell.run(["sh", "-euc", _LIST]).stdout.splitlines()
    words = [line.split(" ", 2) for line in lines]
    return There(
        tuple(rest[0] for kind, *rest in words if kind == "namespace"),
        tuple((rest[0], rest[1]) for kind, *rest in words if kind == "link"),
    )


def short(identifier: str) -> str:
    """Return 12 characters for an interface's name, which has 15 at most."""
    return hashlib.sha256(identifier.encode()).hexdigest()[:12]


def _refusal(done: Completed, namespace: str, port: str, plug: Plug) -> Fatal:
    tunnel = plug.tunnel
    named = ", ".join([plug.bridge, *([tunnel.name] if tunnel else []), port])
    parent = tunnel.parent if isinstance(tunnel, Vlan) else ""
    local = tunnel.local if isinstance(tunnel, Vxlan) else ""
    sentences = {
        _COLLISION: f"One of the interface names {named} is used by something else on this host; "
        f"remove that, or ask again for a new server.",
        _NO_BRIDGE: f"The bridge {plug.bridge} does not exist on this host; make it, or correct "
        f"the backend's compute.bridge.",
        _NO_UNDERLAY: f"This host does not have the address {local}; correct the backend's "
        f"compute.underlay_address.",
        _NO_VLAN: "This host's kernel has no 802.1Q VLAN interfaces; load its module 8021q, or "
        "give out segments of type vxlan.",
        _TWO_SEGMENTS: f"Share network {plug.owner} has another segment on this host already, and "
        f"a bridge joins one only; give the network helpers of this host's backends the same "
        f"name.",
        _NO_PARENT: f"The trunk {parent} does not exist on this host; correct the backend's "
        f"compute.vlan_parent.",
    }
    sentence = sentences.get(done.exit_code)
    if sentence is None:
        return Fatal(
            f"The namespace {namespace} could not be connected to {plug.bridge}: "
            f"{done.stderr.strip()[-300:]}",
            code=ErrorCode.COMPUTE_FAILED,
        )
    wrong_setting = done.exit_code in {_NO_BRIDGE, _NO_UNDERLAY, _NO_VLAN, _NO_PARENT}
    return Fatal(
        sentence, code=ErrorCode.CONFIGURATION if wrong_setting else ErrorCode.COMPUTE_FAILED
    )
