"""Limits of projects; their usage is derived from the rows of their objects."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, Float, Integer, String, Table

from worker.db.tables.main import metadata
from worker.model import ID_LENGTH

quotas = Table(
    "quotas",
    metadata,
    Column("project_id", String(ID_LENGTH), primary_key=True),
    # Empty: of the project's objects of all share types, and of none.
    Column("share_type_id", String(ID_LENGTH), primary_key=True, server_default=""),
    # One of worker.model.QuotaResource.
    Column("resource", String(32), primary_key=True),
    # -1: no limit.
    Column("maximum", Integer, nullable=False),
    Column("updated_at", Float, nullable=False),
    CheckConstraint("maximum >= -1", name="maximum"),
)
