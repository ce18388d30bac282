"""Looking after what serves: active servers, whether they do, and when somebody looks again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, select, update

from worker.db.core.engine import db_now
from worker.db.documents import plain
from worker.db.share_servers.store import server_of
from worker.db.tables.main import backends, share_servers
from worker.model import ServerStatus, ShareServer, ShareServerDetails

_s = share_servers.c
_b = backends.c


def hold_active(connection: Connection, server_id: str) -> Row[Any] | None:
    """Return a server that is ``active``, and keep it so until the commit."""
    return connection.execute(
        select(share_servers)
        .where(_s.id == server_id, _s.status == ServerStatus.ACTIVE.value)
        .with_for_update()
    ).first()


def active(connection: Connection, backend: str) -> list[ShareServer]:
    """Return a backend's servers that should be serving."""
    rows = connection.execute(
        select(share_servers)
        .where(_s.backend == backend, _s.status == ServerStatus.ACTIVE.value)
        .order_by(_s.id)
    )
    return [server_of(row) for row in rows]


def ensured(connection: Connection, server_id: str, details: ShareServerDetails) -> None:
    """An active server serves again."""
    connection.execute(
        update(share_servers)
        .where(_s.id == server_id, _s.status == ServerStatus.ACTIVE.value)
        .values(
            server_id=details.server_id,
            details=plain(details),
            error=None,
            updated_at=db_now(),
        )
    )


def not_ensured(connection: Connection, server_id: str, error: Mapping[str, str]) -> None:
    """An active server could not be made to serve again: it shows why."""
    connection.execute(
        update(share_servers)
        .where(_s.id == server_id, _s.status == ServerStatus.ACTIVE.value)
        .values(error=dict(error), updated_at=db_now())
    )


def ask(connection: Connection, *, again_after: float, limit: int) -> list[str]:
    """Return backends whose share servers are to be looked at; nobody else asks for a while.

    For placement nothing has changed: ``changed_at`` stays.
    """
    # Locked in the order in which reporters lock them, so that nobody deadlocks.
    due = (
        select(_b.name)
        .where(_b.check_at < db_now())
        .order_by(_b.name)
        .limit(limit)
        .with_for_update()
    )
    rows = connection.execute(
        update(backends)
        .where(_b.name.in_(due), _b.check_at < db_now())
        .values(check_at=db_now() + again_after, changed_at=_b.changed_at)
        .returning(_b.name)
    )
    return sorted(rows.scalars())


def hold_backend(connection: Connection, name: str) -> None:
    """Keep a backend's row as it is until the commit: two never start the same on it."""
    connection.execute(select(_b.name).where(_b.name == name).with_for_update())


def looked_at(connection: Connection, name: str, *, again_after: float) -> None:
    """A backend's share servers were looked at; the next time is so many seconds from now."""
    connection.execute(
        update(backends)
        .where(_b.name == name, _b.check_at.is_not(None))
        .values(check_at=db_now() + again_after, changed_at=_b.changed_at)
    )
