"""The main tables. Uniqueness that the engine relies on is a constraint here, never a lock.

Times are seconds since the epoch on the database's clock. Documents (payloads, results, errors)
are JSON. The migrations in ``migrations/`` create the same tables; a test compares them.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    and_,
    text,
)

from worker.db.core.engine import db_now
from worker.model import ID_LENGTH, LIVE_STATES, OperationState, ServerStatus

metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_Sequence = BigInteger().with_variant(Integer, "sqlite")


def _id(name: str, **options: Any) -> Column[str]:
    return Column(name, String(ID_LENGTH), **options)


def _described() -> list[Column[Any]]:
    """Return the columns that every object of a project has."""
    return [
        _id("project_id", nullable=False),
        Column("name", String(255), nullable=False, server_default=""),
        Column("description", Text, nullable=False, server_default=""),
        Column("created_at", Float, nullable=False),
        Column("updated_at", Float, nullable=False),
    ]


def partial_index(name: str, *columns: Any, where: Any, unique: bool = False) -> Index:
    """Create an index of the rows for which ``where`` holds."""
    return Index(name, *columns, unique=unique, postgresql_where=where, sqlite_where=where)


def _values(states: frozenset[Any] | set[Any] | tuple[Any, ...]) -> list[str]:
    return sorted(str(state) for state in states)


operations = Table(
    "operations",
    metadata,
    # The order of acceptance; operations on one object run in it.
    Column("seq", _Sequence, primary_key=True, autoincrement=True),
    # The Celery task id that the producer chose.
    _id("id", nullable=False, unique=True),
    _id("project_id", nullable=False),
    _id("user_id", nullable=False, server_default=""),
    _id("request_id", nullable=False, server_default=""),
    Column("verb", String(64), nullable=False),
    Column("resource_kind", String(32), nullable=False),
    _id("resource_id", nullable=False),
    Column("payload", JSON, nullable=False),
    Column("payload_digest", String(64), nullable=False),
    Column("idempotency_key", String(255)),
    Column("saga", String(64), nullable=False),
    Column("saga_version", Integer, nullable=False, server_default="1"),
    Column("backend", String(255)),
    Column("queue", String(255), nullable=False, server_default=""),
    Column("state", String(32), nullable=False),
    Column("phase", String(16)),
    # The direction: true while the operation's steps are being undone.
    Column("undoing", Boolean, nullable=False, server_default=text("false")),
    # The next task, and the index of its step in the saga.
    Column("task", String(64), nullable=False, server_default=""),
    Column("position", Integer, nullable=False, server_default="0"),
    # Messages with a smaller number are stale and are ignored.
    Column("dispatch", Integer, nullable=False, server_default="0"),
    # The deadline after which the reconciler recovers the operation, in any phase.
    Column("due_at", Float),
    Column("queued_at", Float),
    Column("redrives", Integer, nullable=False, server_default="0"),
    Column("fence", Integer, nullable=False, server_default="0"),
    # Of the current step: how often it was claimed, how many of these attempts failed with an
    # error, and since when it has failed without a success or a wait in between.
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("failing_since", Float),
    Column("claimed_at", Float),
    Column("worker", String(255)),
    Column("waits_for", String(255)),
    Column("waiting_since", Float),
    # The error with which the next claim fails: a cancellation's, or that of the awaited builder.
    Column("verdict", JSON(none_as_null=True), key="cancel_reason"),
    Column("error", JSON(none_as_null=True)),
    Column("result", JSON(none_as_null=True)),
    # The time by which the result is to be stored (again); null once it is stored.
    Column("result_due_at", Float),
    Column("accepted_at", Float, nullable=False),
    Column("finished_at", Float),
    UniqueConstraint("project_id", "idempotency_key"),
)
partial_index(
    "uq_operations_live_resource",
    operations.c.resource_kind,
    operations.c.resource_id,
    where=operations.c.state.in_(_values(LIVE_STATES)),
    unique=True,
)
partial_index("ix_operations_due", operations.c.due_at, where=operations.c.due_at.is_not(None))
partial_index(
    "ix_operations_waits_for", operations.c.waits_for, where=operations.c.waits_for.is_not(None)
)
partial_index(
    "ix_operations_pending",
    operations.c.resource_id,
    operations.c.seq,
    where=operations.c.state == OperationState.PENDING.value,
)
partial_index(
    "ix_operations_result_due",
    operations.c.result_due_at,
    where=operations.c.result_due_at.is_not(None),
)
partial_index(
    "ix_operations_finished",
    operations.c.finished_at,
    where=operations.c.finished_at.is_not(None),
)
Index("ix_operations_project", operations.c.project_id, operations.c.seq)
Index("ix_operations_resource", operations.c.resource_id, operations.c.seq)

# Ids under which the same request was sent again with its idempotency key: they get its result.
operation_aliases = Table(
    "operation_aliases",
    metadata,
    _id("id", primary_key=True),
    _id("operation_id", nullable=False, index=True),
    Column("created_at", Float, nullable=False),
)

operation_steps = Table(
    "operation_steps",
    metadata,
    Column("seq", _Sequence, primary_key=True, autoincrement=True),
    _id("operation_id", nullable=False, index=True),
    Column("task", String(64), nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("worker", String(255), nullable=False),
    Column("started_at", Float, nullable=False),
    Column("finished_at", Float, nullable=False),
    Column("message", Text, nullable=False, server_default=""),
)

share_types = Table(
    "share_types",
    metadata,
    _id("id", primary_key=True),
    *_described(),
    Column("extra_specs", JSON, nullable=False),
    UniqueConstraint("name"),
)

share_networks = Table(
    "share_networks",
    metadata,
    _id("id", primary_key=True),
    *_described(),
    Column("metadata", JSON, nullable=False),
    Column("kind", String(16), nullable=False),
    _id("neutron_net_id"),
    _id("neutron_subnet_id"),
    _id("nova_network_id"),
    Column("flat_network_ip_pool", JSON(none_as_null=True)),
    Column("flat_network_subnet", String(64)),
    Column("flat_network_gateway", String(64)),
    Column("dhcp_endpoint", String(255)),
    Column("cidr", String(64)),
    Column("is_public", Boolean, nullable=False, server_default=text("false")),
    # The network for requests that name none; at most one row has this set.
    Column("is_default", Boolean, nullable=False, server_default=text("false")),
    # A digest of the security services that are on it; empty without any.
    Column("security_key", String(64), nullable=False, server_default=""),
    CheckConstraint(
        "kind IN ('neutron', 'nova', 'flat_pool', 'dhcp', 'managed', 'none')"
        " AND (kind = 'neutron') = (neutron_net_id IS NOT NULL)"
        " AND (neutron_net_id IS NULL) = (neutron_subnet_id IS NULL)"
        " AND (kind = 'nova') = (nova_network_id IS NOT NULL)"
        " AND (kind = 'flat_pool') = (flat_network_ip_pool IS NOT NULL)"
        " AND (kind = 'flat_pool' OR (flat_network_subnet IS NULL"
        " AND flat_network_gateway IS NULL))"
        " AND (kind = 'dhcp') = (dhcp_endpoint IS NOT NULL)"
        " AND (kind = 'managed' OR cidr IS NULL)",
        name="one_kind",
    ),
    CheckConstraint("is_public OR NOT is_default", name="default_is_public"),
    Index("ix_share_networks_project", "project_id", "created_at", "id"),
    Index("ix_share_networks_created", "created_at", "id"),
)
partial_index(
    "uq_share_networks_default",
    share_networks.c.is_default,
    where=share_networks.c.is_default,
    unique=True,
)

security_services = Table(
    "security_services",
    metadata,
    _id("id", primary_key=True),
    *_described(),
    Column("type", String(16), nullable=False),
    # dns_ip and server may hold several values, separated by commas.
    Column("dns_ip", String(255)),
    Column("server", String(255)),
    Column("domain", String(255)),
    Column("ou", String(255)),
    Column("user", String(255)),
    # Sealed by the producer; only a worker that has the private key can open it.
    Column("password_key_id", String(16), index=True),
    Column("password_sealed", LargeBinary),
    # Counts the changes of fields that share servers are configured with.
    Column("revision", Integer, nullable=False, server_default="0"),
    CheckConstraint("type IN ('active_directory', 'ldap', 'kerberos')", name="type"),
    CheckConstraint(
        "(password_key_id IS NULL) = (password_sealed IS NULL)", name="password_has_key"
    ),
    Index("ix_security_services_project", "project_id", "created_at", "id"),
)

share_network_security_services = Table(
    "share_network_security_services",
    metadata,
    _id("share_network_id", primary_key=True),
    # Of the security service: at most one of each type on a share network.
    Column("type", String(16), primary_key=True),
    _id("security_service_id", nullable=False, index=True),
)

share_servers = Table(
    "share_servers",
    metadata,
    _id("id", primary_key=True),
    _id("project_id", nullable=False),
    _id("share_network_id", nullable=False),
    Column("backend", String(255), nullable=False),
    # A digest of the set of security services that it was built with; empty without any.
    Column("security_key", String(64), nullable=False, server_default=""),
    Column("status", String(16), nullable=False),
    _id("builder_id", nullable=False),
    _id("deleter_id"),
    # Live references and their GiB, changed in the same transaction as the reference rows.
    Column("shares", Integer, nullable=False, server_default="0"),
    Column("gib", Integer, nullable=False, server_default="0"),
    _id("server_id"),
    Column("network_info", JSON(none_as_null=True)),
    Column("details", JSON(none_as_null=True)),
    Column("error", JSON(none_as_null=True)),
    Column("idle_since", Float),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    CheckConstraint("shares >= 0 AND gib >= 0", name="counts"),
    Index("ix_share_servers_project", "project_id", "created_at", "id"),
    Index("ix_share_servers_created", "created_at", "id"),
)
_server_key = (
    share_servers.c.project_id,
    share_servers.c.share_network_id,
    share_servers.c.backend,
    share_servers.c.security_key,
)
partial_index(
    "uq_share_servers_one_building",
    *_server_key,
    where=share_servers.c.status.in_(_values((ServerStatus.NEW, ServerStatus.BUILDING))),
    unique=True,
)
Index("ix_share_servers_key", *_server_key)
partial_index(
    "ix_share_servers_idle",
    share_servers.c.idle_since,
    where=share_servers.c.idle_since.is_not(None),
)

share_server_failures = Table(
    "share_server_failures",
    metadata,
    # One row for each server key while its last builder has failed; deleted on success.
    Column("key", String(64), primary_key=True),
    Column("failures", Integer, nullable=False),
    Column("error", JSON, nullable=False),
    Column("failed_at", Float, nullable=False),
)

share_server_refs = Table(
    "share_server_refs",
    metadata,
    _id("share_id", primary_key=True),
    _id("share_server_id", nullable=False, index=True),
    _id("operation_id", nullable=False),
    Column("gib", Integer, nullable=False),
)

address_cursors = Table(
    "address_cursors",
    metadata,
    Column("domain", String(255), primary_key=True),
    # A digest of the ranges: backends on one network, and edited ranges, each have a cursor.
    Column("ranges", String(64), primary_key=True),
    # The highest address that has a row, as 32 hexadecimal digits; empty before the first.
    Column("last_number", String(32), nullable=False, server_default=""),
)

addresses = Table(
    "addresses",
    metadata,
    Column("domain", String(255), primary_key=True),
    # 32 hexadecimal digits, which sort like numbers, for IPv4 and IPv6 alike.
    Column("number", String(32), primary_key=True),
    Column("address", String(64), nullable=False),
    _id("share_server_id", index=True),
    # Which of the server's addresses it is; unique, so that two attempts cannot both take one.
    Column("ordinal", Integer, nullable=False, server_default="0"),
    # The time from which it may be given out again; 0 before its first use.
    Column("rests_until", Float, nullable=False, server_default="0"),
    UniqueConstraint("domain", "share_server_id", "ordinal"),
)
partial_index(
    "ix_addresses_resting",
    addresses.c.domain,
    addresses.c.rests_until,
    where=addresses.c.share_server_id.is_(None),
)

shares = Table(
    "shares",
    metadata,
    _id("id", primary_key=True),
    *_described(),
    Column("metadata", JSON, nullable=False),
    Column("size", Integer, nullable=False),
    Column("share_proto", String(16), nullable=False),
    _id("share_type_id"),
    _id("share_network_id", index=True),
    _id("share_server_id", index=True),
    _id("snapshot_id", index=True),
    Column("backend", String(255), nullable=False),
    Column("pool", String(255), nullable=False),
    # The GiB reserved for it on the pool; 0 once it no longer exists on the backend.
    Column("allocated_gib", Integer, nullable=False, server_default="0"),
    Column("status", String(16), nullable=False),
    Column("access_generation", Integer, nullable=False, server_default="0"),
    Column("applied_generation", Integer, nullable=False, server_default="0"),
    Column("export_locations", JSON, nullable=False),
    Column("error", JSON(none_as_null=True)),
    CheckConstraint("size > 0", name="size"),
    Index("ix_shares_project", "project_id", "created_at", "id"),
    Index("ix_shares_created", "created_at", "id"),
)

snapshots = Table(
    "snapshots",
    metadata,
    _id("id", primary_key=True),
    *_described(),
    Column("metadata", JSON, nullable=False),
    _id("share_id", nullable=False, index=True),
    Column("size", Integer, nullable=False),
    Column("status", String(16), nullable=False),
    Column("error", JSON(none_as_null=True)),
    Index("ix_snapshots_project", "project_id", "created_at", "id"),
    Index("ix_snapshots_created", "created_at", "id"),
)

access_rules = Table(
    "access_rules",
    metadata,
    _id("id", primary_key=True),
    _id("share_id", nullable=False),
    _id("project_id", nullable=False),
    Column("access_type", String(16), nullable=False),
    Column("access_to", String(255), nullable=False),
    Column("access_level", String(8), nullable=False),
    Column("state", String(16), nullable=False),
    # The share's access generation in which the rule was last requested or denied.
    Column("generation", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Index("ix_access_rules_share", "share_id", "created_at", "id"),
)
partial_index(
    "uq_access_rules_client",
    access_rules.c.share_id,
    access_rules.c.access_to,
    where=and_(
        access_rules.c.state != "queued_to_deny",
        access_rules.c.state != "denying",
    ),
    unique=True,
)

backends = Table(
    "backends",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("enabled", Boolean, nullable=False, server_default=text("true")),
    Column("disabled_reason", Text, nullable=False, server_default=""),
    # The last report of its workers; empty until the first one.
    Column("report", JSON, nullable=False),
    Column("reported_at", Float),
    # The time until which one worker has claimed the next report.
    Column("reporting_until", Float),
    Column("report_error", Text, nullable=False, server_default=""),
    # The time of its next periodic audit; null until a reconciler has seen the backend.
    Column("audit_due_at", Float),
    # Schedulers read the rows that have changed since they last read.
    Column("changed_at", Float, nullable=False, default=db_now(), onupdate=db_now()),
    # The time of the next check of its share servers; null if they cannot be checked.
    Column("check_at", Float),
)
partial_index("ix_backends_check_at", backends.c.check_at, where=backends.c.check_at.is_not(None))

storage_pools = Table(
    "storage_pools",
    metadata,
    Column("backend", String(255), primary_key=True),
    Column("name", String(255), primary_key=True),
    Column("total_gib", Integer, nullable=False),
    Column("free_gib", Integer, nullable=False),
    Column("capabilities", JSON, nullable=False),
    # Reserved for shares, in the same transaction as their rows.
    Column("allocated_gib", Integer, nullable=False, server_default="0"),
    Column("shares", Integer, nullable=False, server_default="0"),
    Column("reported_at", Float, nullable=False),
    Column("changed_at", Float, nullable=False, default=db_now(), onupdate=db_now()),
)

counters = Table(
    "counters",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("value", BigInteger, nullable=False, server_default="0"),
)

dead_letters = Table(
    "poison_messages",
    metadata,
    Column("id", _Sequence, primary_key=True, autoincrement=True),
    # The same when the broker delivers the message again, so that it is stored once.
    Column("fingerprint", String(64), nullable=False, unique=True),
    Column("queue", String(255), nullable=False),
    Column("reason", Text, nullable=False),
    Column("headers", JSON, nullable=False),
    Column("body", Text, nullable=False),
    Column("size", Integer, nullable=False),
    Column("received_at", Float, nullable=False),
    # The message that a replay publishes; null if it was too large to be stored in full.
    Column("message", Text),
    Column("replayed_at", Float),
)
