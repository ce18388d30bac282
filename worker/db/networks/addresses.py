"""The address store: which share server holds which address of a flat network.

A cursor moves over the ranges and adds rows for a few addresses at a time. Taking an address picks
free rows, those released longest ago first. The cost of a take therefore does not depend on how
full the ranges are, concurrent transactions on PostgreSQL pick different rows without waiting for
each other, and an IPv6 /64 has about as many rows as it ever had servers at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from netaddr import IPAddress
from sqlalchemy import ColumnElement, Connection, and_, delete, func, or_, select, update

from worker.db.core.engine import db_now, engine_for, insert_into, reading, transaction
from worker.db.core.outages import racing
from worker.db.networks.dhcp_leases import DatabaseLeaseStore
from worker.db.networks.segments import DatabaseSegmentStore
from worker.db.tables.main import address_cursors, addresses
from worker.errors import ErrorCode, Fatal, NotReady, ObjectKind
from worker.model import Holding

ROWS_AT_ONCE: Final = 64
"""Number of addresses that get rows in one transaction; with fewer, many wait for the cursor."""
ROWS_AT_ONCE_MAX: Final = 4096
"""The same number when the first addresses have rows already, because the ranges were edited."""
WORTH_WAITING: Final = 60.0
"""Longest rest, in seconds, that a take waits for; otherwise the pool counts as exhausted."""
SHORTEST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 30.0


@dataclass(frozen=True, slots=True)
class _Taking:
    """Arguments of one call of ``take``; ``ranges`` are sorted."""

    domain: str
    ranges: tuple[tuple[int, int], ...]
    ip_version: int
    server_id: str
    count: int

    @property
    def cursor(self) -> tuple[ColumnElement[bool], ...]:
        return address_cursors.c.domain == self.domain, address_cursors.c.ranges == self.digest

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr(self.ranges).encode()).hexdigest()

    @property
    def free(self) -> ColumnElement[bool]:
        """Condition for rows that no server holds and that lie in the configured ranges."""
        return and_(
            addresses.c.domain == self.domain,
            addresses.c.share_server_id.is_(None),
            or_(
                *(addresses.c.number.between(_hex(low), _hex(high)) for low, high in self.ranges),
            ),
        )

    def after(self, number: int) -> Iterator[int]:
        """Return the addresses of the ranges above ``number``, lowest first."""
        for low, high in self.ranges:
            yield from range(max(low, number + 1), high + 1)


class DatabaseAddressStore:
    """:class:`~worker.helpers.network.base.AddressStore` on PostgreSQL and SQLite.

    ``rest`` is the number of seconds for which a released address is not given out again.
    """

    def __init__(self, url: str, *, rest: float) -> None:
        self._url = url
        self._rest = rest
        self.segments = DatabaseSegmentStore(url, rest=rest)
        self.leases = DatabaseLeaseStore(url)

    def held(self, domain: str, server_id: str) -> tuple[str, ...]:
        """Return the addresses that the share server holds, in the order in which it took them."""
        with reading(engine_for(self._url)) as connection:
            return _held(connection, domain, server_id)

    def take(
        self,
        domain: str,
        ranges: Sequence[tuple[int, int]],
        ip_version: int,
        server_id: str,
        count: int,
    ) -> tuple[str, ...]:
        """Take addresses until the server holds ``count`` of them; return all that it holds.

        Raises :class:`~worker.errors.Fatal` when the pool is exhausted, and
        :class:`~worker.errors.NotReady` when enough addresses become free soon.
        """
        taking = _Taking(domain, tuple(sorted(ranges)), ip_version, server_id, count)
        return racing()(self._take, taking)

    def release(self, server_id: str) -> None:
        """Release all addresses that the server holds, in every domain; their rest begins now."""
        racing()(self._release, server_id)

    def holdings(self) -> list[Holding]:
        """Return every address that is held, with its share server."""
        a = addresses.c
        with reading(engine_for(self._url)) as connection:
            rows = connection.execute(
                select(a.share_server_id, a.domain, a.address).where(a.share_server_id.is_not(None))
            )
            return [Holding(*row) for row in rows]

    def _take(self, taking: _Taking) -> tuple[str, ...]:
        engine = engine_for(self._url)
        with transaction(engine) as connection:
            taken = _from_free_rows(connection, taking)
        if taken is not None:
            return taken
        # A transaction of its own: the one that holds the cursor waits for locked rows, so none
        # may hold locked rows while it waits for the cursor.
        with transaction(engine) as connection:
            taken = _behind_the_cursor(connection, taking)
            # The cursor's progress is committed even then, so that the next refusal is cheap.
            refusal = None if taken is not None else _refusal(connection, taking)
        if taken is not None:
            return taken
        assert refusal is not None
        raise refusal

    def _release(self, server_id: str) -> None:
        with transaction(engine_for(self._url)) as connection:
            connection.execute(
                update(addresses)
                .where(addresses.c.share_server_id == server_id)
                .values(share_server_id=None, rests_until=db_now() + self._rest)
            )


def _from_free_rows(connection: Connection, taking: _Taking) -> tuple[str, ...] | None:
    """Take rows that are free now; take none and return None when they are too few."""
    held = _held(connection, taking.domain, taking.server_id)
    wanted = taking.count - len(held)
    if wanted <= 0:
        return held
    found = _rested(connection, taking, wanted, wait=False)
    return held + _mark(connection, taking, len(held), found) if len(found) == wanted else None


def _behind_the_cursor(connection: Connection, taking: _Taking) -> tuple[str, ...] | None:
    """Advance the cursor until enough rows are free; return None at the end of the ranges."""
    connection.execute(
        insert_into(connection, address_cursors)
        .values(domain=taking.domain, ranges=taking.digest, last_number="")
        .on_conflict_do_nothing()
    )
    last = connection.execute(
        select(address_cursors.c.last_number).where(*taking.cursor).with_for_update()
    ).scalar_one()
    position = int(last, 16) if last else -1
    held = _held(connection, taking.domain, taking.server_id)
    wanted = taking.count - len(held)
    batch = ROWS_AT_ONCE
    while len(found := _rested(connection, taking, wanted, wait=True)) < wanted:
        numbers = list(islice(taking.after(position), batch))
        if not numbers:
            return None
        connection.execute(
            insert_into(connection, addresses).on_conflict_do_nothing(),
            [
                {
                    "domain": taking.domain,
                    "number": _hex(number),
                    "address": _text(number, taking.ip_version),
                    "ordinal": 0,
                    "rests_until": 0.0,
                }
                for number in numbers
            ],
        )
        position = numbers[-1]
        connection.execute(
            update(address_cursors).where(*taking.cursor).values(last_number=_hex(position))
        )
        batch = min(batch * 2, ROWS_AT_ONCE_MAX)
    return held + _mark(connection, taking, len(held), found)


def _held(connection: Connection, domain: str, server_id: str) -> tuple[str, ...]:
    rows = connection.execute(
        select(addresses.c.address)
        .where(addresses.c.domain == domain, addresses.c.share_server_id == server_id)
        .order_by(addresses.c.ordinal)
    )
    return tuple(rows.scalars())


def _rested(
    connection: Connection, taking: _Taking, wanted: int, *, wait: bool
) -> list[tuple[str, str]]:
    """Lock up to ``wanted`` free rows; those locked by others are skipped unless ``wait``."""
    rows = connection.execute(
        select(addresses.c.number, addresses.c.address)
        .where(taking.free, addresses.c.rests_until <= db_now())
        .order_by(addresses.c.rests_until, addresses.c.number)
        .limit(max(wanted, 0))
        .with_for_update(skip_locked=not wait)
    )
    return [(row.number, row.address) for row in rows]


def _mark(
    connection: Connection, taking: _Taking, ordinal: int, found: list[tuple[str, str]]
) -> tuple[str, ...]:
    """Make the share server the holder of the locked rows; return the addresses."""
    for offset, (number, _) in enumerate(found):
        connection.execute(
            update(addresses)
            .where(addresses.c.domain == taking.domain, addresses.c.number == number)
            .values(share_server_id=taking.server_id, ordinal=ordinal + offset)
        )
    return tuple(address for _, address in found)


def _refusal(connection: Connection, taking: _Taking) -> Fatal | NotReady:
    """Return the error when too few addresses are free: NotReady if enough will be soon."""
    now = db_now()
    missing = taking.count - len(_held(connection, taking.domain, taking.server_id))
    remaining: float | None = connection.execute(
        select(addresses.c.rests_until - now)
        .where(taking.free)
        .order_by(addresses.c.rests_until)
        .limit(1)
        .offset(missing - 1)
    ).scalar()
    about = ObjectKind.SHARE_SERVER.ref(taking.server_id)
    if remaining is not None and remaining <= WORTH_WAITING:
        return NotReady(
            f"All addresses of {taking.domain} are in use or rest; enough are free in "
            f"{max(remaining, 0):.0f} s.",
            retry_after=min(max(remaining, SHORTEST_PAUSE), LONGEST_PAUSE),
        )
    resting, first = connection.execute(
        select(func.count(), func.min(addresses.c.rests_until - now)).where(
            taking.free, addresses.c.rests_until > now
        )
    ).one()
    rest = (
        f"{resting} released ones still rest, the first for another {first:.0f} s"
        if resting
        else "none is resting"
    )
    return Fatal(
        f"Share server {taking.server_id} needs {missing} more addresses of {taking.domain}, and "
        f"too few of its {sum(high - low + 1 for low, high in taking.ranges)} are free ({rest}); "
        f"add addresses to the pool or delete shares.",
        object=about,
        code=ErrorCode.ADDRESSES_EXHAUSTED,
    )


def _text(number: int, ip_version: int) -> str:
    return str(IPAddress(number, 4 if ip_version == 4 else 6))  # noqa: PLR2004 - IP version


def _hex(number: int) -> str:
    return f"{number:032x}"


def forget(connection: Connection, domain: str) -> None:
    """Delete the rows of a flat network that was deleted; its name is never reused."""
    connection.execute(delete(addresses).where(addresses.c.domain == domain))
    connection.execute(delete(address_cursors).where(address_cursors.c.domain == domain))
