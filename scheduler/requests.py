"""What a producer may ask: one versioned payload a verb.

A request is the Celery task ``sharewright.request.<verb>`` with the payload as its one argument.
Unknown fields are refused. ``sharewright schema`` prints the JSON Schemas of these models.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final, Literal

from netaddr import AddrFormatError, IPNetwork
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from scheduler.fields import Description, Id, Label, Metadata, Name, Size, Text, whole
from scheduler.network_options import NetworkOptions
from scheduler.security_options import SecurityOptions
from worker.errors import InvalidRequest
from worker.model import NetworkKind, SecurityServiceType

PREFIX: Final = "sharewright.request."


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Context(_Model):
    """On whose behalf; whoever may publish on a request queue is trusted for it."""

    project_id: Id
    user_id: Label = ""
    roles: tuple[Label, ...] = ()
    request_id: Label = ""


class Payload(_Model):
    """What every request carries.

    ``secret_fields`` are not kept with the operation: the object's own row has them.
    """

    secret_fields: ClassVar[frozenset[str]] = frozenset()
    version: Annotated[Literal[1], BeforeValidator(whole)]
    context: Context
    idempotency_key: Text | None = None


class _Described(Payload):
    name: Name = ""
    description: Description = ""
    metadata: Metadata = Field(default_factory=dict)


class CreateShare(_Described):
    """A new share, empty or from a snapshot. ``size`` is whole GiB."""

    size: Size
    share_proto: Literal["NFS", "CIFS"] = "NFS"
    share_type: Annotated[Text | None, Field(description="Name or id of a share type.")] = None
    share_network_id: Id | None = None
    snapshot_id: Id | None = None


class ShareOnly(Payload):
    """A request that names a share and nothing else."""

    share_id: Id


class ExtendShare(ShareOnly):
    """Make a share larger. ``new_size`` is whole GiB."""

    new_size: Size


class CreateSnapshot(_Described):
    """Keep a share's present content."""

    share_id: Id


class SnapshotOnly(Payload):
    """A request that names a snapshot and nothing else."""

    snapshot_id: Id


def _client(value: str) -> str:
    """An address or CIDR, in one spelling; host bits beside a prefix are a mistake."""
    try:
        network = IPNetwork(value)
    except (AddrFormatError, ValueError) as error:
        raise ValueError("is neither an IP address nor a CIDR") from error
    if network.ip != network.network:
        raise ValueError(f"has host bits set; did you mean {network.cidr}?")
    return str(network.ip) if network.size == 1 else str(network.cidr)


class AllowAccess(ShareOnly):
    """Let clients in: an address or a CIDR."""

    access_type: Literal["ip"] = "ip"
    access_to: Annotated[Text, AfterValidator(_client)]
    access_level: Literal["rw", "ro"] = "rw"


class DenyAccess(ShareOnly):
    """Withdraw a rule."""

    access_id: Id


class CreateShareNetwork(_Described, NetworkOptions):
    """Where share servers get their addresses from; the options given make its kind."""

    is_public: Annotated[
        StrictBool,
        Field(description="For every project to use; administrators only (`requests.admin`)."),
    ] = False


class ShareNetworkOnly(Payload):
    """A request that names a share network and nothing else."""

    share_network_id: Id


class UpdateShareNetwork(ShareNetworkOnly, NetworkOptions):
    """Change a share network; what is left out stays.

    Options that make the kind replace all that there were, and only while nothing uses the
    network.
    """

    name: Name | None = None
    description: Description | None = None
    metadata: Metadata | None = None

    @property
    def described(self) -> dict[str, Any]:
        """The new values of what is no option."""
        return self.model_dump(include={"name", "description", "metadata"}, exclude_none=True)


class CreateSecurityService(Payload, SecurityOptions):
    """A directory that share servers authenticate users against.

    `active_directory` needs `dns_ip`, `domain`, `user` and `password`; `kerberos` needs `dns_ip`,
    `domain` and `server`; `ldap` needs `server` or `domain`.
    """

    secret_fields: ClassVar[frozenset[str]] = frozenset({"password"})
    type: SecurityServiceType
    name: Name = ""
    description: Description = ""


class SecurityServiceOnly(Payload):
    """A request that names a security service and nothing else."""

    security_service_id: Id


class UpdateSecurityService(SecurityServiceOnly, SecurityOptions):
    """Change a security service; what is left out stays.

    More than name and description only while no share network that it is added to is in use.
    """

    secret_fields: ClassVar[frozenset[str]] = frozenset({"password"})
    name: Name | None = None
    description: Description | None = None

    @property
    def described(self) -> dict[str, Any]:
        """The new values of what servers are not told."""
        return self.model_dump(include={"name", "description"}, exclude_none=True)


class AddSecurityService(ShareNetworkOnly):
    """Let new share servers of a share network use a security service: one of each type."""

    security_service_id: Id


class RemoveSecurityService(ShareNetworkOnly):
    """Let new share servers of a share network do without a security service."""

    security_service_id: Id


class ShowSealingKey(Payload):
    """The public key that passwords are sealed with, in base64, and its id."""


class CreateShareType(Payload):
    """An administrator's named set of demands on a backend (``extra_specs``)."""

    name: Text
    description: Description = ""
    extra_specs: Metadata = Field(default_factory=dict)


class ShareTypeOnly(Payload):
    """A request that names a share type, by id or name."""

    share_type: Text


class ShareServerOnly(Payload):
    """A request that names a share server."""

    share_server_id: Id


class EnsureShareServers(Payload):
    """Bring share servers and exports back: of one server, one backend, one host, or all."""

    share_server_id: Id | None = None
    backend: Text | None = None
    host: Text | None = None

    @model_validator(mode="after")
    def _one_at_most(self) -> EnsureShareServers:
        if sum(one is not None for one in (self.share_server_id, self.backend, self.host)) > 1:
            raise ValueError("name a share server, a backend or a host, not several of them")
        return self


class OperationOnly(Payload):
    """A request that names an operation."""

    operation_id: Id


class AuditBackend(Payload):
    """Compare the database with what a backend's parts say that they have made."""

    backend: Text
    repair: Annotated[
        StrictBool,
        Field(description="Remove orphans that were seen in two audits and are old enough."),
    ] = False


class BackendOnly(Payload):
    """A request that names a backend."""

    backend: Text


class DisableBackend(BackendOnly):
    """Take a backend out of placement; what it has goes on."""

    reason: Name = ""


class _List(Payload):
    """A page of a list: ``marker`` is the id of the last object of the page before."""

    limit: Annotated[int, Field(strict=True, ge=1, le=1000)] = 100
    marker: Id | None = None
    all_projects: StrictBool = False


class ListShares(_List):
    """Shares, oldest first."""

    name: Name | None = None
    status: Text | None = None
    share_network_id: Id | None = None
    share_server_id: Id | None = None
    share_type: Text | None = None
    snapshot_id: Id | None = None
    backend: Text | None = None


class ListSnapshots(_List):
    """Snapshots, oldest first."""

    name: Name | None = None
    status: Text | None = None
    share_id: Id | None = None


class ListAccess(_List):
    """A share's access rules, oldest first."""

    share_id: Id
    state: Text | None = None


class ListShareNetworks(_List):
    """Share networks, oldest first."""

    name: Name | None = None
    kind: NetworkKind | None = None


class ListSecurityServices(_List):
    """Security services, oldest first."""

    name: Name | None = None
    type: SecurityServiceType | None = None
    share_network_id: Id | None = None


class ListShareTypes(_List):
    """Share types by age."""

    name: Name | None = None


class ListShareServers(_List):
    """Share servers, oldest first."""

    status: Text | None = None
    share_network_id: Id | None = None
    backend: Text | None = None


class ListOperations(_List):
    """Operations in the order of their acceptance."""

    state: Text | None = None
    verb: Text | None = None
    resource_id: Id | None = None


class ListBackends(_List):
    """Backends by name; ``marker`` is a backend's name."""


class Kind(StrEnum):
    """What a verb comes to."""

    CHAIN = "chain"
    """An operation with steps."""
    ROW = "row"
    """An operation that is done once its rows are written."""
    READ = "read"
    """No operation: the answer is the result."""


@dataclass(frozen=True, slots=True)
class Verb:
    """A request that may be made."""

    name: str
    model: type[Payload]
    kind: Kind
    admin: bool = False
    """Accepted from the queue ``requests.admin`` only."""

    @property
    def task(self) -> str:
        """The Celery task's name."""
        return PREFIX + self.name


_VERBS: Final = (
    Verb("create_share", CreateShare, Kind.CHAIN),
    Verb("delete_share", ShareOnly, Kind.CHAIN),
    Verb("extend_share", ExtendShare, Kind.CHAIN),
    Verb("show_share", ShareOnly, Kind.READ),
    Verb("list_shares", ListShares, Kind.READ),
    Verb("create_snapshot", CreateSnapshot, Kind.CHAIN),
    Verb("delete_snapshot", SnapshotOnly, Kind.CHAIN),
    Verb("show_snapshot", SnapshotOnly, Kind.READ),
    Verb("list_snapshots", ListSnapshots, Kind.READ),
    Verb("allow_access", AllowAccess, Kind.CHAIN),
    Verb("deny_access", DenyAccess, Kind.CHAIN),
    Verb("list_access", ListAccess, Kind.READ),
    Verb("create_share_network", CreateShareNetwork, Kind.ROW),
    Verb("update_share_network", UpdateShareNetwork, Kind.ROW),
    Verb("delete_share_network", ShareNetworkOnly, Kind.ROW),
    Verb("show_share_network", ShareNetworkOnly, Kind.READ),
    Verb("list_share_networks", ListShareNetworks, Kind.READ),
    Verb("publish_share_network", ShareNetworkOnly, Kind.ROW, admin=True),
    Verb("unpublish_share_network", ShareNetworkOnly, Kind.ROW, admin=True),
    Verb("set_default_share_network", ShareNetworkOnly, Kind.ROW, admin=True),
    Verb("unset_default_share_network", ShareNetworkOnly, Kind.ROW, admin=True),
    Verb("create_security_service", CreateSecurityService, Kind.ROW),
    Verb("update_security_service", UpdateSecurityService, Kind.ROW),
    Verb("delete_security_service", SecurityServiceOnly, Kind.ROW),
    Verb("show_security_service", SecurityServiceOnly, Kind.READ),
    Verb("list_security_services", ListSecurityServices, Kind.READ),
    Verb("add_security_service", AddSecurityService, Kind.ROW),
    Verb("remove_security_service", RemoveSecurityService, Kind.ROW),
    Verb("show_sealing_key", ShowSealingKey, Kind.READ),
    Verb("create_share_type", CreateShareType, Kind.ROW, admin=True),
    Verb("delete_share_type", ShareTypeOnly, Kind.ROW, admin=True),
    Verb("show_share_type", ShareTypeOnly, Kind.READ),
    Verb("list_share_types", ListShareTypes, Kind.READ),
    Verb("show_share_server", ShareServerOnly, Kind.READ),
    Verb("list_share_servers", ListShareServers, Kind.READ),
    Verb("delete_share_server", ShareServerOnly, Kind.CHAIN, admin=True),
    Verb("ensure_share_servers", EnsureShareServers, Kind.ROW, admin=True),
    Verb("show_operation", OperationOnly, Kind.READ),
    Verb("list_operations", ListOperations, Kind.READ),
    Verb("cancel_operation", OperationOnly, Kind.ROW, admin=True),
    Verb("retry_operation", OperationOnly, Kind.ROW, admin=True),
    Verb("give_up_operation", OperationOnly, Kind.ROW, admin=True),
    Verb("audit_backend", AuditBackend, Kind.CHAIN, admin=True),
    Verb("show_backend", BackendOnly, Kind.READ, admin=True),
    Verb("list_backends", ListBackends, Kind.READ, admin=True),
    Verb("disable_backend", DisableBackend, Kind.ROW, admin=True),
    Verb("enable_backend", BackendOnly, Kind.ROW, admin=True),
)
VERBS: Final = {verb.name: verb for verb in _VERBS}


def parse(verb: Verb, payload: Any) -> Payload:
    """Validate a payload; raises :class:`~worker.errors.InvalidRequest` naming the field."""
    if not isinstance(payload, dict):
        raise InvalidRequest(f"{verb.name} takes one JSON object as its payload.")
    try:
        return verb.model.model_validate(payload)
    except InvalidRequest as error:
        raise InvalidRequest(
            f"{verb.name}: {error.field}: {error.message}", field=error.field
        ) from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        problem = first["msg"].removeprefix("Value error, ")
        raise InvalidRequest(
            f"{verb.name}: {field or 'payload'}: {problem}.", field=field
        ) from None


_ID: Final = TypeAdapter(Id)


def is_id(value: str) -> bool:
    """Whether a message's id can be an operation's."""
    try:
        _ID.validate_python(value)
    except ValidationError:
        return False
    return True


def digest(verb: Verb, payload: Payload) -> str:
    """Tell whether two requests ask for the same; who asked and when does not count."""
    asked = payload.model_dump(mode="json", exclude={"context": {"request_id", "roles", "user_id"}})
    text = json.dumps([verb.name, asked], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
