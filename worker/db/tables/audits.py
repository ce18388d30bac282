"""The tables of the audit; part of :mod:`worker.db.tables.main`.

An audit removes only objects with rows that were in this very database. An object with an id that
was never in it belongs to another installation, or is newer than the backup that was restored.
"""

from __future__ import annotations

from sqlalchemy import Column, Float, Integer, String, Table, Text

from worker.db.tables.main import metadata
from worker.model import ID_LENGTH

_BACKEND = 255

tombstones = Table(
    "tombstones",
    metadata,
    # An object with a deleted row, for as long as operations are kept.
    Column("kind", String(32), primary_key=True),
    Column("id", String(ID_LENGTH), primary_key=True),
    # The backend that may still have the object; empty: any backend.
    Column("backend", String(_BACKEND), nullable=False),
    Column("gone_at", Float, nullable=False, index=True),
)

audit_findings = Table(
    "audit_findings",
    metadata,
    Column("backend", String(_BACKEND), primary_key=True),
    # The driver or helper that listed the object.
    Column("part", String(255), primary_key=True),
    Column("problem", String(16), primary_key=True),
    Column("kind", String(64), primary_key=True),
    # The object's id or name on the backend; for a missing object, its row's id.
    Column("thing", String(512), primary_key=True),
    Column("owner_kind", String(32), nullable=False),
    Column("owner_id", String(ID_LENGTH), nullable=False, index=True),
    # The number of audits in a row that saw it.
    Column("times", Integer, nullable=False),
    Column("first_seen", Float, nullable=False),
    Column("last_seen", Float, nullable=False),
    Column("created_at", Float),
    # The reason why it could not be removed.
    Column("error", Text, nullable=False, server_default=""),
)
