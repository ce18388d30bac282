"""Handlers of administrators' requests about backends."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, update

from scheduler.acceptance.accept import Acceptance
from scheduler.requests.backends import BackendOnly, DisableBackend
from worker.db.tables.main import backends
from worker.engine.accept import Begin, Completed
from worker.errors import NotFound, ObjectKind
from worker.tasks.orphans import NAME as AUDIT


def disable_backend(acceptance: Acceptance) -> Completed:
    """Exclude a backend from placement."""
    request: DisableBackend = acceptance.request
    row = _set_enabled(acceptance, request.backend, enabled=False, reason=request.reason)
    return Completed(("backend", row.name), _state(row))


def enable_backend(acceptance: Acceptance) -> Completed:
    """Include a backend in placement again."""
    request: BackendOnly = acceptance.request
    row = _set_enabled(acceptance, request.backend, enabled=True, reason="")
    return Completed(("backend", row.name), _state(row))


def audit_backend(acceptance: Acceptance) -> Begin:
    """Begin (or queue) the audit of a backend."""
    name = acceptance.request.backend
    if name not in acceptance.config.backends:
        raise NotFound(
            f"No backend {name} is configured.",
            object=ObjectKind.BACKEND.ref(name),
            field="backend",
        )
    return Begin(AUDIT, ("backend", name), name)


def _state(row: Row[Any]) -> dict[str, Any]:
    return {"name": row.name, "enabled": row.enabled, "disabled_reason": row.disabled_reason}


def _set_enabled(acceptance: Acceptance, name: str, *, enabled: bool, reason: str) -> Row[Any]:
    row = acceptance.connection.execute(
        update(backends)
        .where(backends.c.name == name)
        .values(enabled=enabled, disabled_reason=reason)
        .returning(*backends.c)
    ).first()
    if row is None:
        raise NotFound(
            f"No backend {name} has reported yet.",
            object=ObjectKind.BACKEND.ref(name),
            field="backend",
        )
    return row
