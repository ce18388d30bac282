"""Health of active share servers: results of checks, and when the next check is due."""

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
    """Return the row of an ``active`` server, locked until the commit; otherwise None."""
    return connection.execute(
        select(share_servers)
        .where(_s.id == server_id, _s.status == ServerStatus.ACTIVE.value)
        .with_for_update()
    ).first()


def active(connection: Connection, backend: str) -> list[ShareServer]:
    """Return a backend's active share servers."""
    rows = connection.execute(
        select(share_servers)
        .where(_s.backend == backend, _s.status == ServerStatus.ACTIVE.value)
        .order_by(_s.id)
    )
    return [server_of(row) for row in rows]


def ensured(connection: Connection, server_id: str, details: ShareServerDetails) -> None:
    """Record that an active server serves again: store its details, remove its error."""
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
    """Record the error when an active server could not be made to serve again."""
    connection.execute(
        update(share_servers)
        .where(_s.id == server_id, _s.status == ServerStatus.ACTIVE.value)
        .values(error=dict(error), updated_at=db_now())
    )


def ask(connection: Connection, *, again_after: float, limit: int) -> list[str]:
    """Return backends with a due check of their share servers, each to this caller only.

    They are not returned again for ``again_after`` seconds. ``changed_at`` stays, because nothing
    changes for placement.
    """
    # Locked in the order in which pool reports lock them, to avoid deadlocks.
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
    """Lock a backend's row until the commit, so that two transactions do not start the same."""
    connection.execute(select(_b.name).where(_b.name == name).with_for_update())


def looked_at(connection: Connection, name: str, *, again_after: float) -> None:
    """Record a check of a backend's share servers; the next one is in ``again_after`` seconds."""
    connection.execute(
        update(backends)
        .where(_b.name == name, _b.check_at.is_not(None))
        .values(check_at=db_now() + again_after, changed_at=_b.changed_at)
    )
