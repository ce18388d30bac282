"""The domain model: statuses, their allowed transitions, and frozen dataclasses.

This module knows neither the database nor Celery nor an external system. Drivers and helpers
receive and return these values, never dictionaries of "model updates".

Sizes are whole GiB unless a name says otherwise. Times are seconds since the epoch, on the
database's clock. Identifiers are UUID strings and are never reused, so names in external systems
contain them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

ID_LENGTH: Final = 64
"""Maximum length of an identifier, and of a name that is used as one, such as a backend's."""
_EMPTY: Mapping[str, str] = MappingProxyType({})


class DriverMode(StrEnum):
    """Who creates share servers, and who creates networks (the Kilo network specification)."""

    SINGLE_SVM = "single_svm"
    """One share server, configured in advance; no network work at all."""
    FLAT_MULTI_SVM = "flat_multi_svm"
    """A share server per project and share network, on a flat network that exists already."""
    MANAGED_MULTI_SVM = "managed_multi_svm"
    """As flat, and the network helper also creates networks, routes and segments."""

    @property
    def has_share_servers(self) -> bool:
        """Whether backends of this mode create share servers for their shares."""
        return self is not DriverMode.SINGLE_SVM


class NetworkKind(StrEnum):
    """Where a share network's addresses come from; derived from its options."""

    NEUTRON = "neutron"
    """A Neutron network and subnet of the tenant."""
    NOVA = "nova"
    """A nova-network network."""
    FLAT_POOL = "flat_pool"
    """Addresses named on the share network itself."""
    DHCP = "dhcp"
    """Addresses leased from a DHCP server."""
    MANAGED = "managed"
    """A network that the backend's network helper creates."""
    NONE = "none"
    """No network; needs a ``single_svm`` backend."""


class SecurityServiceType(StrEnum):
    """Type of a security service; a share network has at most one of each type."""

    ACTIVE_DIRECTORY = "active_directory"
    """A domain that share servers join."""
    LDAP = "ldap"
    """A directory of users and groups."""
    KERBEROS = "kerberos"
    """A Kerberos realm; share servers accept its tickets."""


class QuotaResource(StrEnum):
    """Resource limited by a project's quota."""

    SHARES = "shares"
    """Number of shares, including those in error."""
    GIGABYTES = "gigabytes"
    """Total size of the shares, in GiB."""
    SNAPSHOTS = "snapshots"
    """Number of snapshots."""
    SNAPSHOT_GIGABYTES = "snapshot_gigabytes"
    """Total size of the snapshots, in GiB."""
    SHARE_NETWORKS = "share_networks"
    """Number of share networks."""


class ShareStatus(StrEnum):
    """Status of a share, with Manila's names."""

    CREATING = "creating"
    AVAILABLE = "available"
    EXTENDING = "extending"
    DELETING = "deleting"
    ERROR = "error"
    ERROR_DELETING = "error_deleting"


class SnapshotStatus(StrEnum):
    """Status of a snapshot."""

    CREATING = "creating"
    AVAILABLE = "available"
    DELETING = "deleting"
    ERROR = "error"
    ERROR_DELETING = "error_deleting"


class AccessState(StrEnum):
    """State of an access rule."""

    QUEUED_TO_APPLY = "queued_to_apply"
    """Accepted, and not yet passed to the driver."""
    APPLYING = "applying"
    """Part of the set of rules that is being passed to the driver."""
    ACTIVE = "active"
    """The driver enforces it."""
    QUEUED_TO_DENY = "queued_to_deny"
    """To be removed; the driver may still enforce it."""
    DENYING = "denying"
    """Left out of the set of rules that is being passed to the driver."""
    ERROR = "error"
    """The driver refused the set of rules; the share's operations say why."""


class ServerStatus(StrEnum):
    """Status of a share server."""

    NEW = "new"
    """The row exists; nothing has been created in an external system yet."""
    BUILDING = "building"
    """Its addresses are allocated and the server is being created."""
    ACTIVE = "active"
    """The server serves shares."""
    DELETING = "deleting"
    """An operation is deleting it; it takes no new shares and never becomes active again."""
    ERROR = "error"
    """Its build failed; the row is kept to show the reason. Nothing of it is left in the external
    systems, unless the removal failed too: then the removal is retried."""
    ERROR_DELETING = "error_deleting"
    """Its deletion failed; the deletion is retried and the row is kept."""


class OwnerKind(StrEnum):
    """Kind of the row that an external resource was created for; also the name of its table."""

    SHARE = "share"
    SNAPSHOT = "snapshot"
    SHARE_SERVER = "share_server"
    SHARE_NETWORK = "share_network"


class Outage(StrEnum):
    """Outage of an active share server."""

    FILE_SERVER = "file_server"
    """The server exists, but its file server does not answer."""
    SERVER = "server"
    """The server itself is gone, as after a reboot of its host."""


class OperationState(StrEnum):
    """State of an operation."""

    PENDING = "pending"
    """Accepted, and queued behind another operation on the same object."""
    RUNNING = "running"
    """Its steps are being carried out."""
    UNDOING = "undoing"
    """A step failed permanently, or the operation was cancelled; its steps are being undone."""
    SUCCEEDED = "succeeded"
    """Every step succeeded."""
    FAILED = "failed"
    """A step failed permanently, and everything was undone."""
    CANCELLED = "cancelled"
    """Cancelled while it ran, and undone."""
    SUPERSEDED = "superseded"
    """Replaced by a delete before it began."""
    COMPENSATION_FAILED = "compensation_failed"
    """Something could not be undone or deleted in time; it is retried at a slow pace."""
    GIVEN_UP = "given_up"
    """An operator ended the attempts to undo it; the audit removes what is left."""

    @property
    def has_ended(self) -> bool:
        """Whether the result is final (``compensation_failed`` has one and is still retried)."""
        return self not in {self.PENDING, self.RUNNING, self.UNDOING}


LIVE_STATES = frozenset({OperationState.RUNNING, OperationState.UNDOING})
"""States to which the constraint "one live operation per object" applies."""


class Phase(StrEnum):
    """Meaning of a live operation's deadline (docs/explanation/engine.md, rules 3, 4 and 7)."""

    QUEUED = "queued"
    """A message is queued; past the deadline, it was lost or its queue is slow."""
    LEASED = "leased"
    """A worker is running the step; past the deadline, that worker is gone."""
    WAITING = "waiting"
    """The step waits until the deadline, or until the event it waits for."""


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
    (_A.QUEUED_TO_APPLY, _A.ERROR): "the driver refused the set permanently",
    (_A.APPLYING, _A.ERROR): "the driver refused the set permanently",
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
    """Return the statuses from which an object may change to ``status``, and ``status`` itself."""
    return [str(old) for old, new in transitions if new == status] + [str(status)]


@dataclass(frozen=True, slots=True)
class RequestContext:
    """Context of one call to a plug-in: project, user, operation, and the lease's guard.

    ``guard()`` must be called before every changing call to an external system; it raises
    :class:`~worker.errors.LeaseLost` once the step's lease is lost or has expired.
    """

    project_id: str
    user_id: str = ""
    roles: tuple[str, ...] = ()
    request_id: str = ""
    operation_id: str = ""
    guard: Callable[[], None] = field(default=lambda: None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Route:
    """A route of a share server besides its default route."""

    destination: str
    nexthop: str


@dataclass(frozen=True, slots=True)
class NetworkInfo:
    """Network of a share server, as its network helper allocated it.

    ``addresses`` are the share server's, all in ``cidr``. ``ports`` are the external ids of the
    allocations in the same order, empty when the network has none. ``broadcast`` is None for IPv6
    and for /31 and /32; ``gateway`` is None when there is none. The segment's fields are set in
    managed mode only.
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
    """Segment that isolates a share network: a VXLAN or VLAN id, and its subnet."""

    domain: str
    segmentation_id: int
    share_network_id: str
    cidr: str


@dataclass(frozen=True, slots=True)
class SegmentSource:
    """Pool of segments.

    Segment ids are unique in a domain. ``ids`` are the first and the last that may be allocated.
    ``subnets`` is divided into subnets of ``prefix_length`` for share networks that name none.
    """

    domain: str
    ids: tuple[int, int]
    subnets: str | None
    prefix_length: int


@dataclass(frozen=True, slots=True)
class Holding:
    """Allocation of a share server in a domain: an address, or the id of a segment."""

    share_server_id: str
    domain: str
    what: str


@dataclass(frozen=True, slots=True)
class DhcpLease:
    """An address that a share server has leased, or is about to lease, from a DHCP server.

    ``endpoint`` is the DHCP server as host:port, ``dhcp_server`` the address by which it identifies
    itself. ``ordinal`` is the address's index among those of the share server.
    """

    share_server_id: str
    ordinal: int
    endpoint: str
    address: str
    mac: str
    dhcp_server: str


@dataclass(frozen=True, slots=True)
class ShareNetwork:
    """A project's share network: the source of its share servers' addresses."""

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
    """Id of the set of security services that new share servers use; empty without any."""


@dataclass(frozen=True, slots=True)
class SecurityService:
    """A directory that share servers authenticate users against.

    ``dns_ip`` and ``server`` may be several, separated by commas. The password is never shown.
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
    """A serving share server, as its compute helper created it.

    ``server_id`` is its id or name in the external system. ``attributes`` are strings for the
    driver that works on the server, such as the name of a namespace or vserver.
    """

    server_id: str
    addresses: tuple[str, ...]
    attributes: Mapping[str, str] = field(default_factory=lambda: _EMPTY)


@dataclass(frozen=True, slots=True)
class ShareServer:
    """A tenant's file server: its row, and its details once the external system has it."""

    id: str
    project_id: str
    backend: str
    share_network_id: str | None
    status: ServerStatus
    network_info: NetworkInfo | None = None
    details: ShareServerDetails | None = None
    server_id: str | None = None
    """The external id, if known; set even when the build failed."""
    security_key: str = ""
    """Id of the set of security services that the server uses; empty without any."""
    security_services: tuple[SecurityService, ...] = ()
    """The security services for a driver to log in to; set only for calls of a driver."""


@dataclass(frozen=True, slots=True)
class ExportLocation:
    """One location from which clients can mount a share."""

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
    """Access of one client (an address or CIDR) to a share, at level ``ro`` or ``rw``."""

    id: str
    access_type: str
    access_to: str
    access_level: str


@dataclass(frozen=True, slots=True)
class OwnedResource:
    """A resource in an external system that carries our mark, as listed for an audit.

    ``kind`` is the external system's term for it (``port``, ``namespace``), ``id`` its id or name
    there, unique within its kind. ``owner_kind`` and ``owner_id`` identify the row that it was
    created for, read from its name or tag. ``created_at`` is by the external system's clock, None
    where unknown.
    """

    kind: str
    id: str
    owner_kind: OwnerKind
    owner_id: str
    created_at: float | None = None


@dataclass(frozen=True, slots=True)
class StoragePool:
    """A backend's storage pool: its capacity in whole GiB, and its capabilities."""

    name: str
    total_gib: int
    free_gib: int
    capabilities: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
