"""DHCP leases: which share server holds which, and when each is due for renewal.

A reconciler publishes a renewal for each share server with due leases; a worker claims the
server's leases and renews them. Each of the two is one conditional update, so any number of
reconcilers and workers may run at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    delete,
    exists,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from worker.db.core.engine import db_now, engine_for, insert_into, reading, transaction
from worker.db.core.outages import patiently
from worker.db.tables.main import share_servers
from worker.db.tables.networks import dhcp_leases
from worker.errors import NotReady
from worker.model import DhcpLease

CLOSING_PAUSE: Final = 1.0
"""Seconds after which ``close`` is tried again while a renewal is under way."""
SHORTEST_PAUSE: Final = 10.0
"""Least number of seconds between attempts to renew a lease that is about to expire."""

_l = dhcp_leases.c
_Answer = TypeVar("_Answer")
_FIELDS: Final = tuple(DhcpLease.__dataclass_fields__)


class DatabaseLeaseStore:
    """:class:`~worker.helpers.network.base.LeaseStore` on PostgreSQL and SQLite."""

    def __init__(self, url: str) -> None:
        self._url = url

    def held(self, server_id: str) -> tuple[DhcpLease, ...]:
        """Return the leases that the share server has or may have, by ordinal."""
        with reading(engine_for(self._url)) as connection:
            return _held(connection, server_id)

    def offered(self, lease: DhcpLease) -> bool:
        """Store a lease before requesting it; False when another server has the address."""
        values = {name: getattr(lease, name) for name in _FIELDS}

        def write(connection: Connection) -> None:
            statement = insert_into(connection, dhcp_leases).values(values)
            connection.execute(
                statement.on_conflict_do_update(
                    index_elements=[_l.share_server_id, _l.ordinal], set_=values
                )
            )

        try:
            self._write(write)
        except IntegrityError:  # of (endpoint, address): the other constraint is written over
            return False
        return True

    def acknowledged(
        self, server_id: str, ordinal: int, *, seconds: float | None, renew_after: float | None
    ) -> None:
        """Record that the DHCP server granted a lease.

        ``seconds`` is its length from now, None without an end; ``renew_after`` is the time until
        its renewal, None for never.
        """
        self._write(
            lambda connection: connection.execute(
                update(dhcp_leases)
                .where(_l.share_server_id == server_id, _l.ordinal == ordinal)
                .values(
                    expires_at=None if seconds is None else db_now() + seconds,
                    renew_at=None if renew_after is None else db_now() + renew_after,
                )
            )
        )

    def close(self, server_id: str) -> tuple[DhcpLease, ...]:
        """Stop renewing the share server's leases, and return them.

        Raises :class:`~worker.errors.NotReady` while a renewal is under way.
        """

        def write(connection: Connection) -> tuple[tuple[DhcpLease, ...], float]:
            mine = _l.share_server_id == server_id
            connection.execute(update(dhcp_leases).where(mine).values(closing=True))
            busy = connection.execute(
                select(func.max(_l.renewing_until) - db_now()).where(mine)
            ).scalar_one()
            return _held(connection, server_id), busy or 0.0

        held, busy = self._write(write)
        if busy > 0:
            raise NotReady(
                f"The DHCP leases of share server {server_id} are being renewed; they are "
                f"released after the renewal.",
                retry_after=min(busy, CLOSING_PAUSE),
            )
        return held

    def release_failed(self, server_id: str) -> int:
        """Count a failed attempt to release the leases; return how many there were."""

        def write(connection: Connection) -> int:
            counted = connection.execute(
                update(dhcp_leases)
                .where(_l.share_server_id == server_id)
                .values(failed_releases=_l.failed_releases + 1)
                .returning(_l.failed_releases)
            )
            return max(counted.scalars(), default=0)

        return self._write(write)

    def remove(self, server_id: str) -> None:
        """Delete the share server's leases."""
        self._write(
            lambda connection: connection.execute(
                delete(dhcp_leases).where(_l.share_server_id == server_id)
            )
        )

    def all(self) -> list[DhcpLease]:
        """Return the leases of all share servers."""
        with reading(engine_for(self._url)) as connection:
            return [_lease(row) for row in connection.execute(select(dhcp_leases))]

    def _write(self, body: Callable[[Connection], _Answer]) -> _Answer:
        def whole() -> _Answer:
            with transaction(engine_for(self._url)) as connection:
                return body(connection)

        return patiently()(whole)


def ask(connection: Connection, *, again_after: float, limit: int) -> dict[str, list[str]]:
    """Return share servers with leases due for renewal, by backend, to this caller only.

    They are not returned again for ``again_after`` seconds.
    """
    due = (
        select(_l.share_server_id)
        .where(_is_due(), _l.asked_until < db_now())
        .order_by(_l.renew_at)
        .limit(limit)
    )
    rows = connection.execute(
        update(dhcp_leases)
        .where(_l.share_server_id.in_(due), _l.asked_until < db_now())
        .values(asked_until=db_now() + again_after)
        .returning(_l.share_server_id)
    )
    asked = sorted(set(rows.scalars()))
    backends: dict[str, list[str]] = {}
    # Leases without a server are left out: they are not in use, so they are not renewed.
    for row in connection.execute(
        select(share_servers.c.id, share_servers.c.backend).where(share_servers.c.id.in_(asked))
    ):
        backends.setdefault(row.backend, []).append(row.id)
    return backends


def claim(connection: Connection, server_id: str, seconds: float) -> bool:
    """Claim the renewal of a share server's leases for ``seconds``; False when none is due."""
    taken = connection.execute(
        update(dhcp_leases)
        .where(_l.share_server_id == server_id, _is_due())
        .values(renewing_until=db_now() + seconds)
    )
    return taken.rowcount > 0


def renewed(connection: Connection, server_id: str) -> None:
    """Record that all leases of a share server were renewed, and release the claim."""
    connection.execute(
        update(dhcp_leases)
        .where(_l.share_server_id == server_id)
        .values(renewing_until=0, asked_until=0)
    )


def not_renewed(connection: Connection, server_id: str, *, pause_when_expired: float) -> bool:
    """Retry a failed renewal after half of the time left (RFC 2131 §4.4.5).

    True if a lease of the share server has expired; the pause is then ``pause_when_expired``
    seconds.
    """
    mine = _l.share_server_id == server_id
    left = connection.execute(select(func.min(_l.expires_at) - db_now()).where(mine)).scalar_one()
    expired = left is not None and left <= 0
    pause = pause_when_expired if expired else max((left or 0.0) / 2, SHORTEST_PAUSE)
    connection.execute(
        update(dhcp_leases)
        .where(mine, _l.renew_at < db_now())
        .values(renew_at=db_now() + pause, asked_until=0)
    )
    connection.execute(update(dhcp_leases).where(mine).values(renewing_until=0))
    return expired


def forget_orphans(connection: Connection) -> int:
    """Delete leases of deleted share servers, once they have expired; return how many.

    A lease without an end is deleted at once. A worker that was suspended while the server was
    deleted may have stored one.
    """
    alive = exists(select(share_servers.c.id).where(share_servers.c.id == _l.share_server_id))
    return connection.execute(
        delete(dhcp_leases).where(~alive, or_(_l.expires_at.is_(None), _l.expires_at < db_now()))
    ).rowcount


def _held(connection: Connection, server_id: str) -> tuple[DhcpLease, ...]:
    rows = connection.execute(
        select(dhcp_leases).where(_l.share_server_id == server_id).order_by(_l.ordinal)
    )
    return tuple(_lease(row) for row in rows)


def _lease(row: Row[tuple[object, ...]]) -> DhcpLease:
    return DhcpLease(**{name: getattr(row, name) for name in _FIELDS})


def _is_due() -> ColumnElement[bool]:
    return and_(_l.renew_at < db_now(), _l.closing.is_(False), _l.renewing_until < db_now())
