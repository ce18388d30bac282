"""The first version."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from worker.db.migrations import audit

revision = "0001"
down_revision = None


def upgrade() -> None:  # noqa: PLR0915 - a statement for each table and index
    op.create_table(
        "access_rules",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("share_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("access_type", sa.String(length=16), nullable=False),
        sa.Column("access_to", sa.String(length=255), nullable=False),
        sa.Column("access_level", sa.String(length=8), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_access_rules")),
    )
    op.create_index(
        "ix_access_rules_share", "access_rules", ["share_id", "created_at", "id"], unique=False
    )
    op.create_index(
        "uq_access_rules_client",
        "access_rules",
        ["share_id", "access_to"],
        unique=True,
        postgresql_where=sa.text("state != 'queued_to_deny' AND state != 'denying'"),
        sqlite_where=sa.text("state != 'queued_to_deny' AND state != 'denying'"),
    )
    op.create_table(
        "address_cursors",
        sa.Column("domain", sa.String(length=255), nullable=False),
        sa.Column("ranges", sa.String(length=64), nullable=False),
        sa.Column("last_number", sa.String(length=32), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("domain", "ranges", name=op.f("pk_address_cursors")),
    )
    op.create_table(
        "addresses",
        sa.Column("domain", sa.String(length=255), nullable=False),
        sa.Column("number", sa.String(length=32), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.Column("share_server_id", sa.String(length=64), nullable=True),
        sa.Column("ordinal", sa.Integer(), server_default="0", nullable=False),
        sa.Column("rests_until", sa.Float(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("domain", "number", name=op.f("pk_addresses")),
        sa.UniqueConstraint(
            "domain",
            "share_server_id",
            "ordinal",
            name=op.f("uq_addresses_domain_share_server_id_ordinal"),
        ),
    )
    op.create_index(
        "ix_addresses_resting",
        "addresses",
        ["domain", "rests_until"],
        unique=False,
        postgresql_where=sa.text("share_server_id IS NULL"),
        sqlite_where=sa.text("share_server_id IS NULL"),
    )
    op.create_index(
        op.f("ix_addresses_share_server_id"), "addresses", ["share_server_id"], unique=False
    )
    op.create_table(
        "backends",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("enabled", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("disabled_reason", sa.Text(), server_default="", nullable=False),
        sa.Column("report", sa.JSON(), nullable=False),
        sa.Column("reported_at", sa.Float(), nullable=True),
        sa.Column("reporting_until", sa.Float(), nullable=True),
        sa.Column("report_error", sa.Text(), server_default="", nullable=False),
        sa.Column("audit_due_at", sa.Float(), nullable=True),
        sa.Column("changed_at", sa.Float(), nullable=False),
        sa.Column("check_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_backends")),
    )
    op.create_index(
        "ix_backends_check_at",
        "backends",
        ["check_at"],
        unique=False,
        sqlite_where=sa.text("check_at IS NOT NULL"),
        postgresql_where=sa.text("check_at IS NOT NULL"),
    )
    op.create_table(
        "counters",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("value", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_counters")),
    )
    op.create_table(
        "dhcp_leases",
        sa.Column("share_server_id", sa.String(length=64), nullable=False),
        sa.Column("ordinal", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("endpoint", sa.String(length=255), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.Column("mac", sa.String(length=17), nullable=False),
        sa.Column("dhcp_server", sa.String(length=64), nullable=False),
        sa.Column("renew_at", sa.Float(), nullable=True),
        sa.Column("expires_at", sa.Float(), nullable=True),
        sa.Column("asked_until", sa.Float(), server_default="0", nullable=False),
        sa.Column("renewing_until", sa.Float(), server_default="0", nullable=False),
        sa.Column("closing", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("failed_releases", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("share_server_id", "ordinal", name=op.f("pk_dhcp_leases")),
        sa.UniqueConstraint("endpoint", "address", name=op.f("uq_dhcp_leases_endpoint_address")),
    )
    op.create_index(
        "ix_dhcp_leases_renew_at",
        "dhcp_leases",
        ["renew_at"],
        unique=False,
        postgresql_where=sa.text("renew_at IS NOT NULL"),
        sqlite_where=sa.text("renew_at IS NOT NULL"),
    )
    op.create_table(
        "operation_aliases",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("operation_id", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_operation_aliases")),
    )
    op.create_index(
        op.f("ix_operation_aliases_operation_id"),
        "operation_aliases",
        ["operation_id"],
        unique=False,
    )
    op.create_table(
        "operation_steps",
        sa.Column(
            "seq",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("operation_id", sa.String(length=64), nullable=False),
        sa.Column("task", sa.String(length=64), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(length=255), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("finished_at", sa.Float(), nullable=False),
        sa.Column("message", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_operation_steps")),
    )
    op.create_index(
        op.f("ix_operation_steps_operation_id"), "operation_steps", ["operation_id"], unique=False
    )
    op.create_table(
        "operations",
        sa.Column(
            "seq",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=64), server_default="", nullable=False),
        sa.Column("request_id", sa.String(length=64), server_default="", nullable=False),
        sa.Column("verb", sa.String(length=64), nullable=False),
        sa.Column("resource_kind", sa.String(length=32), nullable=False),
        sa.Column("resource_id", sa.String(length=64), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("payload_digest", sa.String(length=64), nullable=False),
        sa.Column("idempotency_key", sa.String(length=255), nullable=True),
        sa.Column("saga", sa.String(length=64), nullable=False),
        sa.Column("saga_version", sa.Integer(), server_default="1", nullable=False),
        sa.Column("backend", sa.String(length=255), nullable=True),
        sa.Column("queue", sa.String(length=255), server_default="", nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("phase", sa.String(length=16), nullable=True),
        sa.Column("undoing", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("task", sa.String(length=64), server_default="", nullable=False),
        sa.Column("position", sa.Integer(), server_default="0", nullable=False),
        sa.Column("dispatch", sa.Integer(), server_default="0", nullable=False),
        sa.Column("due_at", sa.Float(), nullable=True),
        sa.Column("queued_at", sa.Float(), nullable=True),
        sa.Column("redrives", sa.Integer(), server_default="0", nullable=False),
        sa.Column("fence", sa.Integer(), server_default="0", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("claimed_at", sa.Float(), nullable=True),
        sa.Column("worker", sa.String(length=255), nullable=True),
        sa.Column("waits_for", sa.String(length=255), nullable=True),
        sa.Column("waiting_since", sa.Float(), nullable=True),
        sa.Column("verdict", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("error", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("result", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("result_due_at", sa.Float(), nullable=True),
        sa.Column("accepted_at", sa.Float(), nullable=False),
        sa.Column("finished_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_operations")),
        sa.UniqueConstraint("id", name=op.f("uq_operations_id")),
        sa.UniqueConstraint(
            "project_id", "idempotency_key", name=op.f("uq_operations_project_id_idempotency_key")
        ),
    )
    op.create_index(
        "ix_operations_due",
        "operations",
        ["due_at"],
        unique=False,
        postgresql_where=sa.text("due_at IS NOT NULL"),
        sqlite_where=sa.text("due_at IS NOT NULL"),
    )
    op.create_index(
        "ix_operations_finished",
        "operations",
        ["finished_at"],
        unique=False,
        postgresql_where=sa.text("finished_at IS NOT NULL"),
        sqlite_where=sa.text("finished_at IS NOT NULL"),
    )
    op.create_index(
        "ix_operations_pending",
        "operations",
        ["resource_id", "seq"],
        unique=False,
        postgresql_where=sa.text("state = 'pending'"),
        sqlite_where=sa.text("state = 'pending'"),
    )
    op.create_index("ix_operations_project", "operations", ["project_id", "seq"], unique=False)
    op.create_index("ix_operations_resource", "operations", ["resource_id", "seq"], unique=False)
    op.create_index(
        "ix_operations_result_due",
        "operations",
        ["result_due_at"],
        unique=False,
        postgresql_where=sa.text("result_due_at IS NOT NULL"),
        sqlite_where=sa.text("result_due_at IS NOT NULL"),
    )
    op.create_index(
        "ix_operations_waits_for",
        "operations",
        ["waits_for"],
        unique=False,
        postgresql_where=sa.text("waits_for IS NOT NULL"),
        sqlite_where=sa.text("waits_for IS NOT NULL"),
    )
    op.create_index(
        "uq_operations_live_resource",
        "operations",
        ["resource_kind", "resource_id"],
        unique=True,
        postgresql_where=sa.text("state IN ('running', 'undoing')"),
        sqlite_where=sa.text("state IN ('running', 'undoing')"),
    )
    op.create_table(
        "poison_messages",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("queue", sa.String(length=255), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("headers", sa.JSON(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("received_at", sa.Float(), nullable=False),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("replayed_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_poison_messages")),
        sa.UniqueConstraint("fingerprint", name=op.f("uq_poison_messages_fingerprint")),
    )
    op.create_table(
        "security_services",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), server_default="", nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.Column("type", sa.String(length=16), nullable=False),
        sa.Column("dns_ip", sa.String(length=255), nullable=True),
        sa.Column("server", sa.String(length=255), nullable=True),
        sa.Column("domain", sa.String(length=255), nullable=True),
        sa.Column("ou", sa.String(length=255), nullable=True),
        sa.Column("user", sa.String(length=255), nullable=True),
        sa.Column("password_key_id", sa.String(length=16), nullable=True),
        sa.Column("password_sealed", sa.LargeBinary(), nullable=True),
        sa.Column("revision", sa.Integer(), server_default="0", nullable=False),
        sa.CheckConstraint(
            "type IN ('active_directory', 'ldap', 'kerberos')",
            name=op.f("ck_security_services_type"),
        ),
        sa.CheckConstraint(
            "(password_key_id IS NULL) = (password_sealed IS NULL)",
            name=op.f("ck_security_services_password_has_key"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_security_services")),
    )
    op.create_index(
        op.f("ix_security_services_password_key_id"),
        "security_services",
        ["password_key_id"],
        unique=False,
    )
    op.create_index(
        "ix_security_services_project",
        "security_services",
        ["project_id", "created_at", "id"],
        unique=False,
    )
    op.create_table(
        "segment_holders",
        sa.Column("share_server_id", sa.String(length=64), nullable=False),
        sa.Column("domain", sa.String(length=255), nullable=False),
        sa.Column("segmentation_id", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("share_server_id", name=op.f("pk_segment_holders")),
    )
    op.create_index(
        "ix_segment_holders_segment",
        "segment_holders",
        ["domain", "segmentation_id"],
        unique=False,
    )
    op.create_table(
        "segments",
        sa.Column("domain", sa.String(length=255), nullable=False),
        sa.Column("segmentation_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("share_network_id", sa.String(length=64), nullable=False),
        sa.Column("cidr", sa.String(length=64), nullable=False),
        sa.Column("chosen_cidr", sa.String(length=64), nullable=True),
        sa.Column("closing_for", sa.String(length=64), nullable=True),
        sa.Column("rests_until", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("domain", "segmentation_id", name=op.f("pk_segments")),
        sa.UniqueConstraint(
            "domain", "share_network_id", name=op.f("uq_segments_domain_share_network_id")
        ),
        sa.UniqueConstraint("domain", "chosen_cidr", name=op.f("uq_segments_domain_chosen_cidr")),
    )
    op.create_table(
        "share_network_security_services",
        sa.Column("share_network_id", sa.String(length=64), nullable=False),
        sa.Column("type", sa.String(length=16), nullable=False),
        sa.Column("security_service_id", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint(
            "share_network_id", "type", name=op.f("pk_share_network_security_services")
        ),
    )
    op.create_index(
        op.f("ix_share_network_security_services_security_service_id"),
        "share_network_security_services",
        ["security_service_id"],
        unique=False,
    )
    op.create_table(
        "share_networks",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), server_default="", nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("neutron_net_id", sa.String(length=64), nullable=True),
        sa.Column("neutron_subnet_id", sa.String(length=64), nullable=True),
        sa.Column("nova_network_id", sa.String(length=64), nullable=True),
        sa.Column("flat_network_ip_pool", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("flat_network_subnet", sa.String(length=64), nullable=True),
        sa.Column("flat_network_gateway", sa.String(length=64), nullable=True),
        sa.Column("dhcp_endpoint", sa.String(length=255), nullable=True),
        sa.Column("cidr", sa.String(length=64), nullable=True),
        sa.Column("is_public", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("is_default", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("security_key", sa.String(length=64), server_default="", nullable=False),
        sa.CheckConstraint(
            "kind IN ('neutron', 'nova', 'flat_pool', 'dhcp', 'managed', 'none')"
            " AND (kind = 'neutron') = (neutron_net_id IS NOT NULL)"
            " AND (neutron_net_id IS NULL) = (neutron_subnet_id IS NULL)"
            " AND (kind = 'nova') = (nova_network_id IS NOT NULL)"
            " AND (kind = 'flat_pool') = (flat_network_ip_pool IS NOT NULL)"
            " AND (kind = 'flat_pool' OR (flat_network_subnet IS NULL"
            " AND flat_network_gateway IS NULL))"
            " AND (kind = 'dhcp') = (dhcp_endpoint IS NOT NULL)"
            " AND (kind = 'managed' OR cidr IS NULL)",
            name=op.f("ck_share_networks_one_kind"),
        ),
        sa.CheckConstraint(
            "is_public OR NOT is_default", name=op.f("ck_share_networks_default_is_public")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_share_networks")),
    )
    op.create_index(
        "ix_share_networks_project",
        "share_networks",
        ["project_id", "created_at", "id"],
        unique=False,
    )
    op.create_index(
        "uq_share_networks_default",
        "share_networks",
        ["is_default"],
        unique=True,
        postgresql_where=sa.text("is_default"),
        sqlite_where=sa.text("is_default"),
    )
    op.create_table(
        "share_server_failures",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("error", sa.JSON(), nullable=False),
        sa.Column("failed_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_share_server_failures")),
    )
    op.create_table(
        "share_server_refs",
        sa.Column("share_id", sa.String(length=64), nullable=False),
        sa.Column("share_server_id", sa.String(length=64), nullable=False),
        sa.Column("operation_id", sa.String(length=64), nullable=False),
        sa.Column("gib", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("share_id", name=op.f("pk_share_server_refs")),
    )
    op.create_index(
        op.f("ix_share_server_refs_share_server_id"),
        "share_server_refs",
        ["share_server_id"],
        unique=False,
    )
    op.create_table(
        "share_servers",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("share_network_id", sa.String(length=64), nullable=False),
        sa.Column("backend", sa.String(length=255), nullable=False),
        sa.Column("security_key", sa.String(length=64), server_default="", nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("builder_id", sa.String(length=64), nullable=False),
        sa.Column("deleter_id", sa.String(length=64), nullable=True),
        sa.Column("shares", sa.Integer(), server_default="0", nullable=False),
        sa.Column("gib", sa.Integer(), server_default="0", nullable=False),
        sa.Column("server_id", sa.String(length=64), nullable=True),
        sa.Column("network_info", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("details", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("error", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("idle_since", sa.Float(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.CheckConstraint("shares >= 0 AND gib >= 0", name=op.f("ck_share_servers_counts")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_share_servers")),
    )
    op.create_index(
        "ix_share_servers_idle",
        "share_servers",
        ["idle_since"],
        unique=False,
        postgresql_where=sa.text("idle_since IS NOT NULL"),
        sqlite_where=sa.text("idle_since IS NOT NULL"),
    )
    op.create_index(
        "ix_share_servers_project",
        "share_servers",
        ["project_id", "created_at", "id"],
        unique=False,
    )
    op.create_index(
        "ix_share_servers_key",
        "share_servers",
        ["project_id", "share_network_id", "backend", "security_key"],
        unique=False,
    )
    op.create_index(
        "uq_share_servers_one_building",
        "share_servers",
        ["project_id", "share_network_id", "backend", "security_key"],
        unique=True,
        postgresql_where=sa.text("status IN ('building', 'new')"),
        sqlite_where=sa.text("status IN ('building', 'new')"),
    )
    op.create_table(
        "share_types",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), server_default="", nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.Column("extra_specs", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_share_types")),
        sa.UniqueConstraint("name", name=op.f("uq_share_types_name")),
    )
    op.create_table(
        "shares",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), server_default="", nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("share_proto", sa.String(length=16), nullable=False),
        sa.Column("share_type_id", sa.String(length=64), nullable=True),
        sa.Column("share_network_id", sa.String(length=64), nullable=True),
        sa.Column("share_server_id", sa.String(length=64), nullable=True),
        sa.Column("snapshot_id", sa.String(length=64), nullable=True),
        sa.Column("backend", sa.String(length=255), nullable=False),
        sa.Column("pool", sa.String(length=255), nullable=False),
        sa.Column("allocated_gib", sa.Integer(), server_default="0", nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("access_generation", sa.Integer(), server_default="0", nullable=False),
        sa.Column("applied_generation", sa.Integer(), server_default="0", nullable=False),
        sa.Column("export_locations", sa.JSON(), nullable=False),
        sa.Column("error", sa.JSON(none_as_null=True), nullable=True),
        sa.CheckConstraint("size > 0", name=op.f("ck_shares_size")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_shares")),
    )
    op.create_index("ix_shares_project", "shares", ["project_id", "created_at", "id"], unique=False)
    op.create_index(
        op.f("ix_shares_share_network_id"), "shares", ["share_network_id"], unique=False
    )
    op.create_index(op.f("ix_shares_share_server_id"), "shares", ["share_server_id"], unique=False)
    op.create_index(op.f("ix_shares_snapshot_id"), "shares", ["snapshot_id"], unique=False)
    op.create_table(
        "snapshots",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), server_default="", nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("share_id", sa.String(length=64), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("error", sa.JSON(none_as_null=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_snapshots")),
    )
    op.create_index(
        "ix_snapshots_project", "snapshots", ["project_id", "created_at", "id"], unique=False
    )
    op.create_index(op.f("ix_snapshots_share_id"), "snapshots", ["share_id"], unique=False)
    op.create_table(
        "storage_pools",
        sa.Column("backend", sa.String(length=255), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("total_gib", sa.Integer(), nullable=False),
        sa.Column("free_gib", sa.Integer(), nullable=False),
        sa.Column("capabilities", sa.JSON(), nullable=False),
        sa.Column("allocated_gib", sa.Integer(), server_default="0", nullable=False),
        sa.Column("shares", sa.Integer(), server_default="0", nullable=False),
        sa.Column("reported_at", sa.Float(), nullable=False),
        sa.Column("changed_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("backend", "name", name=op.f("pk_storage_pools")),
    )
    audit.create()
    for table in ("share_networks", "share_servers", "shares", "snapshots"):
        op.create_index(f"ix_{table}_created", table, ["created_at", "id"], unique=False)


def downgrade() -> None:
    raise NotImplementedError("There is nothing before the first version.")
