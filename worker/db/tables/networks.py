"""The tables of segments and DHCP leases; part of :mod:`worker.db.tables.main`."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, Index, Integer, String, Table, UniqueConstraint, text

from worker.db.tables.main import metadata, partial_index
from worker.model import ID_LENGTH

segments = Table(
    "segments",
    metadata,
    # The source of segment ids; backends on the same underlay share a domain.
    Column("domain", String(255), primary_key=True),
    Column("segmentation_id", Integer, primary_key=True, autoincrement=False),
    Column("share_network_id", String(ID_LENGTH), nullable=False),
    Column("cidr", String(64), nullable=False),
    # The subnet if Sharewright chose it: these are unique, those that tenants chose may repeat.
    Column("chosen_cidr", String(64)),
    # The last holder, which is removing the segment; no other server may join it any more.
    Column("closing_for", String(ID_LENGTH)),
    # The time from which the id may be given out again; null while it is in use.
    Column("rests_until", Float),
    UniqueConstraint("domain", "share_network_id"),
    UniqueConstraint("domain", "chosen_cidr"),
)

segment_holders = Table(
    "segment_holders",
    metadata,
    Column("share_server_id", String(ID_LENGTH), primary_key=True),
    Column("domain", String(255), nullable=False),
    Column("segmentation_id", Integer, nullable=False),
    Index("ix_segment_holders_segment", "domain", "segmentation_id"),
)

dhcp_leases = Table(
    "dhcp_leases",
    metadata,
    Column("share_server_id", String(ID_LENGTH), primary_key=True),
    # Which of the server's addresses it is.
    Column("ordinal", Integer, primary_key=True, autoincrement=False),
    # The DHCP server as host:port; two servers may give out the same private addresses.
    Column("endpoint", String(255), nullable=False),
    Column("address", String(64), nullable=False),
    Column("mac", String(17), nullable=False),
    # The server identifier (DHCP option 54), which a release must name.
    Column("dhcp_server", String(64), nullable=False),
    # Null until the lease is acknowledged, and for a lease without an end.
    Column("renew_at", Float),
    Column("expires_at", Float),
    # The times until which no other reconciler publishes a renewal and no other worker renews it.
    Column("asked_until", Float, nullable=False, server_default="0"),
    Column("renewing_until", Float, nullable=False, server_default="0"),
    # True while it is being released, and is therefore not renewed.
    Column("closing", Boolean, nullable=False, server_default=text("false")),
    Column("failed_releases", Integer, nullable=False, server_default="0"),
    UniqueConstraint("endpoint", "address"),
)
partial_index(
    "ix_dhcp_leases_renew_at", dhcp_leases.c.renew_at, where=dhcp_leases.c.renew_at.is_not(None)
)
