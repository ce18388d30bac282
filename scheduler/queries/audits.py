"""Findings of audits, for operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, select

from worker.db import views
from worker.db.tables.audits import audit_findings


def list_findings(connection: Connection, backends: Sequence[str], limit: int) -> dict[str, Any]:
    """Return up to ``limit`` findings of some backends, the longest known first."""
    f = audit_findings.c
    rows = connection.execute(
        select(*views.FINDING.columns)
        .where(f.backend.in_(backends))
        .order_by(f.backend, f.problem, f.first_seen, f.part, f.kind, f.thing)
        .limit(limit)
    )
    return {"findings": [views.FINDING(row) for row in rows]}
