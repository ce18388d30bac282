"""The words of the system as values: statuses, their transitions, and frozen dataclasses.

Nothing here knows the database, Celery or an outside system. Drivers and helpers are handed these
values and return them; no dictionary of "model updates" crosses that border.

Sizes are whole GiB unless a name says otherwise. Times are seconds since the epoch, on the
database's clock. Identifiers are UUID strings and are never reused, which is why outside names
are made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

ID_LENGTH: Final = 64
"""At most; also of the names that stand for ids, as backends' do."""
_EMPTY: Mapping[str, str] = MappingProxyType({})


class DriverMode(StrEnum):
    """Who makes share servers, and who makes networks (the Kilo network specification)."""

    SINGLE_SVM = "single_svm"
    """One share server, configured in advance; no network work at all."""
    FLAT_MULTI_SVM = "flat_multi_svm"
    """A share server per project and share network, on a flat network that exists already."""
    MANAGED_MULTI_SVM = "managed_multi_svm"
    """As flat, and the network helper makes networks, routes and segments too."""

    @property
    def has_share_servers(self) -> bool:
        """Whether shares of this mode live on share servers that are made for them."""
        return self is not DriverMode.SINGLE_SVM


class NetworkKind(StrEnum):
    """Where a share network's addresses come from; derived from its options."""

    NEUTRON = "neutron"
    """A Neutron network and subnet of the tenant's."""
    NOVA = "nova"
    """A nova-network network."""
    FLAT_POOL = "flat_pool"
    """Addresses named on the share network itself."""
    DHCP = "dhcp"
    """A DHCP server that is asked for addresses."""
    MANAGED = "managed"
    """A network that the backend's helper makes."""
    NONE = "none"
    """No network: asks for a ``single_svm`` backend."""


class SecurityServiceType(StrEnum):
    """What a security service is; a share network has at most one of each type."""

    ACTIVE_DIRECTORY = "active_directory"
    """A domain that share servers join."""
    LDAP = "ldap"
    """A directory of users and groups."""
    KERBEROS = "kerberos"
    """A realm whose tickets share servers accept."""


class QuotaResource(StrEnum):
    """What a project's quota limits."""

    SHARES = "shares"
    """How many shares, also those in error."""
    GIGABYTES = "gigabytes"
    """The sizes of shares together, in GiB."""
    SNAPSHOTS = "snapshots"
    """How many snapshots."""
    SNAPSHOT_GIGABYTES = "snapshot_gigabytes"
    """The sizes of snapshots together, in GiB."""
    SHARE_NETWORKS = "share_networks"
    """How many share networks."""


class ShareStatus(StrEnum):
    """Life of a share, in Manila's words."""

    CREATING = "creating"
    AVAILABLE = "available"
    EXTENDING = "extending"
    DELETING = "deleting"
    ERROR = "error"
    ERROR_DELETING = "error_deleting"


class SnapshotStatus(StrEnum):
    """Life of a snapshot."""

    CREATING = "creating"
    AVAILABLE = "available"
    DELETING = "deleting"
    ERROR = "error"
    ERROR_DELETING = "error_deleting"


class AccessState(StrEnum):
    """Life of an access rule."""

    QUEUED_TO_APPLY = "queued_to_apply"
    """Accepted; the driver has not been handed it yet."""
    APPLYING = "applying"
    """Part of a set that the driver is being handed."""
    ACTIVE = "active"
    """The driver enforces it."""
    QUEUED_TO_DENY = "queued_to_deny"
    """To be withdrawn; the driver may still enforce it."""
    DENYING = "denying"
    """Left out of a set that the driver is being handed."""
    ERROR = "error"
    """The driver did not accept the set; the share's operations say why."""


class ServerStatus(StrEnum):
    """Life of a share server."""

    NEW = "new"
    """The row exists; its builder has done nothing outside yet."""
    BUILDING = "building"
    """Its builder holds addresses or is making the server."""
    ACTIVE = "active"
    """It serves."""
    DELETING = "deleting"
    """One operation is deleting it; it cannot be joined and never goes back."""
    ERROR = "error"
    """Its build failed; kept to be seen, with the reason. Nothing of it is left outside, unless
    removing that failed too: then it is tried on."""
    ERROR_DELETING = "error_deleting"
    """Its deletion failed; it is tried again and kept visible."""


class OwnerKind(StrEnum):
    """What a thing outside was made for; names the table of its row."""

    SHARE = "share"
    SNAPSHOT = "snapshot"
    SHARE_SERVER = "share_server"
    SHARE_NETWORK = "share_network"


class Outage(StrEnum):
    """What an active share server was found to lack."""

    FILE_SERVER = "file_server"
    """The server is there, and nothing serves its shares."""
    SERVER = "server"
    """The server itself is gone, as after a reboot of its host."""


class OperationState(StrEnum):
    """How far an operation is."""

    PENDING = "pending"
    """Accepted, behind another operation on the same object."""
    RUNNING = "running"
    """Its steps are being done."""
    UNDOING = "undoing"
    """A step failed for good, or it was cancelled; what was done is being undone."""
    SUCCEEDED = "succeeded"
    """Every step is done."""
    FAILED = "failed"
    """A step failed for good and everything was undone."""
    CANCELLED = "cancelled"
    """Cancelled on the way, and undone."""
    SUPERSEDED = "superseded"
    """Overtaken by a delete before it began."""
    COMPENSATION_FAILED = "compensation_failed"
    """Something could not be undone (or deleted) in time; it is tried again, slowly."""
    GIVEN_UP = "given_up"
    """An operator ended what could not be undone; the audit removes what is left outside."""

    @property
    def has_ended(self) -> bool:
        """Whether a result stands (``compensation_failed`` has one and is still tried)."""
        return self not in {self.PENDING, self.RUNNING, self.UNDOING}


LIVE_STATES = frozenset({OperationState.RUNNING, OperationState.UNDOING})
"""The states under the constraint "one live operation an object"."""


class Phase(StrEnum):
    """What a live operation's deadline means (docs/explanation/engine.md, rules 3, 4 and 7)."""

    QUEUED = "queued"
    """A message should be on its way; overdue means it was lost or its queue is slow."""
    LEASED = "leased"
    """A worker is on it; overdue means that worker is gone."""
    WAITING = "waiting"
    """Nothing to do before the deadline, or before what it waits for happens."""


_S = ShareStatus
_N = SnapshotStatus
_A = AccessState
_V = ServerStatus

SHARE_TRANSITIONS: dict[tuple[_S, _S], str] = {
    (_S.CREATING, _S.AVAILABLE): "create_share finished",
    (_S.CREATING, _S.ERROR): "the create failed and was undone",
    (_S.CREATING, _S.DELETING): "a delete cancelled the create",
    (_S.AVAILABLE, _S.EXTENDING): "an extend was accepted",
    (_S.EXTENDING, _S.AVAILABLE): "extended, or the real size read back after a failure",
    (
        _S.EXTENDING,
        _S.ERROR,
    ): "an extend failed, and the real size is looked up until it is known",
    (_S.EXTENDING, _S.DELETING): "a delete was accepted behind the extend",
    (_S.AVAILABLE, _S.ERROR): "it could not be served again; its data is gone, for example",
    (_S.ERROR, _S.AVAILABLE): "it is served again",
    (_S.AVAILABLE, _S.DELETING): "a delete was accepted",
    (_S.ERROR, _S.DELETING): "a delete of a failed share was accepted",
    (_S.DELETING, _S.ERROR_DELETING): "the delete failed for too long; it is tried again, slowly",
    (_S.ERROR_DELETING, _S.DELETING): "another delete was accepted",
}
SNAPSHOT_TRANSITIONS: dict[tuple[_N, _N], str] = {
    (_N.CREATING, _N.AVAILABLE): "create_snapshot finished",
    (_N.CREATING, _N.ERROR): "the create failed and was undone",
    (_N.AVAILABLE, _N.DELETING): "a delete was accepted",
    (_N.ERROR, _N.DELETING): "a delete of a failed snapshot was accepted",
    (_N.DELETING, _N.ERROR_DELETING): "the delete failed for too long; it is tried again, slowly",
    (_N.ERROR_DELETING, _N.DELETING): "another delete was accepted",
}
ACCESS_TRANSITIONS: dict[tuple[_A, _A], str] = {
    (_A.QUEUED_TO_APPLY, _A.APPLYING): "a set with the rule is being handed to the driver",
    (_A.APPLYING, _A.ACTIVE): "the driver accepted the set",
    (_A.QUEUED_TO_APPLY, _A.ACTIVE): "the driver accepted a set that had it",
    (_A.QUEUED_TO_APPLY, _A.QUEUED_TO_DENY): "denied before it was applied",
    (_A.APPLYING, _A.QUEUED_TO_DENY): "denied while it was being applied",
    (_A.ACTIVE, _A.QUEUED_TO_DENY): "a deny was accepted",
    (_A.ERROR, _A.QUEUED_TO_DENY): "a deny of a failed rule was accepted",
    (_A.QUEUED_TO_DENY, _A.DENYING): "a set without the rule is being handed to the driver",
    (_A.QUEUED_TO_APPLY, _A.ERROR): "the driver refused the set for good",
    (_A.APPLYING, _A.ERROR): "the driver refused the set for good",
    (_A.QUEUED_TO_DENY, _A.ERROR): "the deny failed for too long; it is tried again, slowly",
    (_A.DENYING, _A.ERROR): "the deny failed for too long; it is tried again, slowly",
}
SERVER_TRANSITIONS: dict[tuple[_V, _V], str] = {
    (_V.NEW, _V.BUILDING): "its addresses are allocated",
    (_V.BUILDING, _V.ACTIVE): "it serves",
    (_V.NEW, _V.DELETING): "its builder gave up before anything was made",
    (_V.BUILDING, _V.DELETING): "its builder gave up",
    (_V.ACTIVE, _V.DELETING): "nothing refers to it: it was idle long enough, or is deleted",
    (_V.DELETING, _V.ERROR_DELETING): "the deletion failed for too long; it is tried again, slowly",
    (_V.ERROR_DELETING, _V.DELETING): "the deletion is tried again",
    (_V.DELETING, _V.ERROR): "its build failed; it was undone, or its undo failed for too long",
    (_V.ERROR, _V.DELETING): "an administrator deletes it",
}


def sources(transitions: Mapping[tuple[Any, Any], str], status: StrEnum) -> list[str]:
    """The statuses that an object may come from to be ``status``, which it may have already."""
    return [str(old) for old, new in transitions if new == status] + [str(status)]


@dataclass(frozen=True, slots=True)
class RequestContext:
    """On whose behalf, for which operation, and whether this worker may still act.

    ``guard()`` is called before every changing call to the outside; it raises
    :class:`~worker.errors.LeaseLost` once the step's lease is lost or used up.
    """

    project_id: str
    user_id: str = ""
    roles: tuple[str, ...] = ()
    request_id: str = ""
    operation_id: str = ""
    guard: Callable[[], None] = field(default=lambda: None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Route:
    """A route that a share server needs besides its gateway."""

    destination: str
    nexthop: str


@dataclass(frozen=True, slots=True)
class NetworkInfo:
    """What a network helper answers: the flat part always, the segment in managed mode.

    ``addresses`` are the share server's own, all from ``cidr``; ``ports`` are the outside ids of
    the allocations in the same order (empty where the network has none). ``broadcast`` is None
    for IPv6 and for /31, /32; ``gateway`` is None where there is none.
    """

    cidr: str
    netmask: str
    prefix_length: int
    ip_version: int
    broadcast: str | None
    gateway: str | None
    addresses: tuple[str, ...]
    ports: tuple[str, ...] = ()
    mac_addresses: tuple[str, ...] = ()
    routes: tuple[Route, ...] = ()
    segmentation_type: str | None = None
    segmentation_id: int | None = None
    mtu: int | None = None
    attributes: Mapping[str, str] = field(default_factory=lambda: _EMPTY)


@dataclass(frozen=True, slots=True)
class Segment:
    """What keeps a share network apart from others: a VNI or VLAN id, and its subnet."""

    domain: str
    segmentation_id: int
    share_network_id: str
    cidr: str


@dataclass(frozen=True, slots=True)
class SegmentSource:
    """Where segments come from.

    Segment ids are unique in a domain. ``ids`` are the first and last that may be given out;
    ``subnets`` is cut into subnets of ``prefix_length`` for share networks that name none.
    """

    domain: str
    ids: tuple[int, int]
    subnets: str | None
    prefix_length: int


@dataclass(frozen=True, slots=True)
class Holding:
    """What a share server has in the address book: an address or a segment's id in a domain."""

    share_server_id: str
    domain: str
    what: str


@dataclass(frozen=True, slots=True)
class DhcpLease:
    """An address that a share server has, or is about to take, from a DHCP server.

    ``endpoint`` is the DHCP server as host:port, ``dhcp_server`` the name (an address) that it
    gives itself. ``ordinal`` is which of the share server's addresses it is.
    """

    share_server_id: str
    ordinal: int
    endpoint: str
    address: str
    mac: str
    dhcp_server: str


@dataclass(frozen=True, slots=True)
class ShareNetwork:
    """Where a project's share servers get their addresses from."""

    id: str
    project_id: str
    kind: NetworkKind
    name: str = ""
    description: str = ""
    neutron_net_id: str | None = None
    neutron_subnet_id: str | None = None
    nova_network_id: str | None = None
    flat_network_ip_pool: tuple[str, ...] = ()
    flat_network_subnet: str | None = None
    flat_network_gateway: str | None = None
    dhcp_endpoint: str | None = None
    cidr: str | None = None
    is_public: bool = False
    security_key: str = ""
    """Which set of security services its new share servers get; empty without any."""


@dataclass(frozen=True, slots=True)
class SecurityService:
    """A directory that share servers authenticate users against; the password is never shown.

    ``dns_ip`` and ``server`` may be several, with commas between them.
    """

    id: str
    type: SecurityServiceType
    dns_ip: str | None = None
    server: str | None = None
    domain: str | None = None
    ou: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ShareServerDetails:
    """What a compute helper answers about a server that serves.

    ``server_id`` is the outside's own id or name of it. ``attributes`` is for the driver that
    works on the server (a namespace's name, a vserver's name); string to string, JSON-safe.
    """

    server_id: str
    addresses: tuple[str, ...]
    attributes: Mapping[str, str] = field(default_factory=lambda: _EMPTY)


@dataclass(frozen=True, slots=True)
class ShareServer:
    """A tenant's file server: our row, and what is known of the outside so far."""

    id: str
    project_id: str
    backend: str
    share_network_id: str | None
    status: ServerStatus
    network_info: NetworkInfo | None = None
    details: ShareServerDetails | None = None
    server_id: str | None = None
    """The outside id even where the build failed, if one is known."""
    security_key: str = ""
    """Which set of security services it is made for; empty without any."""
    security_services: tuple[SecurityService, ...] = ()
    """For drivers that log in to them; filled in just before a driver is called."""


@dataclass(frozen=True, slots=True)
class ExportLocation:
    """One place where clients find a share, as they would mount it."""

    path: str
    preferred: bool = True


@dataclass(frozen=True, slots=True)
class Share:
    """A share as drivers see it."""

    id: str
    project_id: str
    size: int
    share_proto: str
    backend: str
    pool: str
    name: str = ""
    share_server_id: str | None = None
    export_locations: tuple[ExportLocation, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot as drivers see it; ``size`` is the share's size when it was taken."""

    id: str
    share_id: str
    project_id: str
    size: int


@dataclass(frozen=True, slots=True)
class AccessRule:
    """One client (an address or CIDR) and what it may do (``ro`` or ``rw``)."""

    id: str
    access_type: str
    access_to: str
    access_level: str


@dataclass(frozen=True, slots=True)
class OwnedResource:
    """A thing outside that bears our mark, as an audit finds it.

    ``kind`` is the outside's word for it (``port``, ``namespace``), ``id`` its own id or name
    there, unique among its kind. ``owner_kind`` and ``owner_id`` are the row that it was made
    for, read from its name or tag. ``created_at`` is by the outside's clock, where it says.
    """

    kind: str
    id: str
    owner_kind: OwnerKind
    owner_id: str
    created_at: float | None = None


@dataclass(frozen=True, slots=True)
class StoragePool:
    """What a backend can still hold, in whole GiB, and what it is capable of."""

    name: str
    total_gib: int
    free_gib: int
    capabilities: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
