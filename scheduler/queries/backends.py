"""Queries of backends and their storage pools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import (
    Connection,
    Row,
    Select,
    select,
)

from scheduler.queries.base import page
from scheduler.requests.backends import BackendOnly, ListBackends
from worker.config import Config
from worker.db import views
from worker.db.core.engine import db_now
from worker.db.tables.main import (
    backends,
    storage_pools,
)
from worker.errors import NotFound, ObjectKind


def show_backend(connection: Connection, request: BackendOnly, config: Config) -> dict[str, Any]:
    """Return a backend, whether it is up, and its storage pools; for administrators."""
    row = connection.execute(_BACKENDS.where(backends.c.name == request.backend)).first()
    if row is None:
        raise NotFound(
            f"No backend {request.backend} has ever reported.",
            object=ObjectKind.BACKEND.ref(request.backend),
            field="backend",
        )
    return _backends(connection, [row], config)[0]


def list_backends(connection: Connection, request: ListBackends, config: Config) -> dict[str, Any]:
    """Return a page of backends, sorted by name; for administrators."""
    rows, marker = page(
        connection,
        _BACKENDS,
        order=(backends.c.name,),
        marker_id=backends.c.name,
        request=request,
        visible=None,
    )
    return {"backends": _backends(connection, rows, config), "next_marker": marker}


_BACKENDS: Final[Select[Any]] = select(
    *views.BACKEND.columns, (db_now() - backends.c.reported_at).label("age")
)


def _backends(
    connection: Connection, rows: Sequence[Row[Any]], config: Config
) -> list[dict[str, Any]]:
    p = storage_pools.c
    statement: Select[Any] = (
        select(p.backend, *views.STORAGE_POOL.columns)
        .where(p.backend.in_([row.name for row in rows]))
        .order_by(p.backend, p.name)
    )
    pools = connection.execute(statement).all()
    return [
        {
            **views.BACKEND(row),
            "state": _up_or_down(row.age, config),
            "pools": [views.STORAGE_POOL(pool) for pool in pools if pool.backend == row.name],
        }
        for row in rows
    ]


def _up_or_down(age: float | None, config: Config) -> str:
    return "up" if age is not None and age <= config.engine.report_expiry else "down"
