"""The tables of the audit; part of :mod:`worker.db.tables.main`.

An audit removes only what was made for a row that this very database has had: what bears an id
that it never had belongs to another installation, or to a time after its last backup.
"""

from __future__ import annotations

from sqlalchemy import Column, Float, Integer, String, Table, Text

from worker.db.tables.main import metadata
from worker.model import ID_LENGTH

_BACKEND = 255

tombstones = Table(
    "tombstones",
    metadata,
    # An object whose row is gone, for as long as operations are kept.
    Column("kind", String(32), primary_key=True),
    Column("id", String(ID_LENGTH), primary_key=True),
    # Whose audit looks for what is left of it; empty: any.
    Column("backend", String(_BACKEND), nullable=False),
    Column("gone_at", Float, nullable=False, index=True),
)

audit_findings = Table(
    "audit_findings",
    metadata,
    Column("backend", String(_BACKEND), primary_key=True),
    # The driver or helper that told of it.
    Column("part", String(255), primary_key=True),
    Column("problem", String(16), primary_key=True),
    Column("kind", String(64), primary_key=True),
    # Its id or name outside; of what is missing, the row's id.
    Column("thing", String(512), primary_key=True),
    Column("owner_kind", String(32), nullable=False),
    Column("owner_id", String(ID_LENGTH), nullable=False, index=True),
    # In how many audits it was seen, without a gap.
    Column("times", Integer, nullable=False),
    Column("first_seen", Float, nullable=False),
    Column("last_seen", Float, nullable=False),
    Column("created_at", Float),
    # Why it could not be removed.
    Column("error", Text, nullable=False, server_default=""),
)
