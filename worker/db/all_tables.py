"""All tables at once, for what goes through every one of them: migrations, and tests."""

from __future__ import annotations

from worker.db import audit_tables, network_tables, tables

__all__ = ["audit_tables", "metadata", "network_tables"]

metadata = tables.metadata
