"""What audits found, as operators read it from the database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, select

from worker.db.documents import moment
from worker.db.tables.audits import audit_findings


def list_findings(connection: Connection, backends: Sequence[str], limit: int) -> dict[str, Any]:
    """Return what is wrong on some backends, the longest known first."""
    f = audit_findings.c
    rows = connection.execute(
        select(audit_findings)
        .where(f.backend.in_(backends))
        .order_by(f.backend, f.problem, f.first_seen, f.part, f.kind, f.thing)
        .limit(limit)
    )
    times = ("first_seen", "last_seen", "created_at")
    return {
        "findings": [
            {
                name: moment(value) if name in times else value
                for name, value in row._asdict().items()
            }
            for row in rows
        ]
    }
