"""All tables at once, for migrations and tests, which need every one of them."""

from __future__ import annotations

from worker.db.tables import audits as audit_tables
from worker.db.tables import main as tables
from worker.db.tables import networks as network_tables
from worker.db.tables import quotas as quota_tables

__all__ = ["audit_tables", "metadata", "network_tables", "quota_tables"]

metadata = tables.metadata
