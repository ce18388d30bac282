"""The segment store: which share network has which segment id and subnet.

A segment has a row while it is in use or rests. It is held by its share servers' rows; its rest
begins in the transaction that removes the last of them. All transactions on one segment lock its
row first, so that no server is added to a segment that is being removed.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Final

from netaddr import IPAddress, IPNetwork
from sqlalchemy import Connection, Row, delete, func, insert, select, update

from worker.db.core.engine import db_now, engine_for, reading, transaction
from worker.db.core.outages import racing
from worker.db.tables.networks import segment_holders, segments
from worker.errors import ErrorCode, Fatal, NotReady, ObjectKind
from worker.model import Holding, Segment, SegmentSource

CLOSING_PAUSE: Final = 2.0
"""Seconds after which ``take`` is tried again while the old segment is being removed."""


class DatabaseSegmentStore:
    """:class:`~worker.helpers.network.base.SegmentStore` on PostgreSQL and SQLite.

    ``rest`` is the number of seconds for which a released segment is not given out again.
    """

    def __init__(self, url: str, *, rest: float) -> None:
        self._url = url
        self._rest = rest

    def take(
        self, source: SegmentSource, share_network_id: str, server_id: str, cidr: str | None
    ) -> Segment:
        """Add the server to its share network's segment, taking a new one if there is none.

        Raises :class:`~worker.errors.Fatal` when no segment or subnet is free, and
        :class:`~worker.errors.NotReady` while the network's old segment is being removed.
        """
        return racing()(self._take, source, share_network_id, server_id, cidr)

    def held(self, server_id: str) -> Segment | None:
        """Return the segment that the server is on, or None."""
        with reading(engine_for(self._url)) as connection:
            row = _held(connection, server_id, lock=False)
        return None if row is None else _segment(row)

    def close(self, server_id: str) -> Segment | None:
        """Close the server's segment to others and return it; None while others are on it."""
        return racing()(self._close, server_id)

    def release(self, server_id: str) -> None:
        """Remove the server from its segment; the last one's removal begins the segment's rest."""
        racing()(self._release, server_id)

    def holdings(self) -> list[Holding]:
        """Return every segment that is held, with its share server."""
        h = segment_holders.c
        with reading(engine_for(self._url)) as connection:
            rows = connection.execute(select(h.share_server_id, h.domain, h.segmentation_id))
            return [Holding(row[0], row[1], str(row[2])) for row in rows]

    def _take(
        self, source: SegmentSource, share_network_id: str, server_id: str, cidr: str | None
    ) -> Segment:
        with transaction(engine_for(self._url)) as connection:
            connection.execute(
                delete(segments).where(
                    segments.c.domain == source.domain, segments.c.rests_until <= db_now()
                )
            )
            row = connection.execute(
                select(segments)
                .where(
                    segments.c.domain == source.domain,
                    segments.c.share_network_id == share_network_id,
                )
                .with_for_update()
            ).first()
            if row is None:
                row = _insert(connection, source, share_network_id, cidr)
            elif row.closing_for is not None:
                raise NotReady(
                    f"The segment {row.segmentation_id} of share network {share_network_id} is "
                    f"being removed with its last share server; another one is taken afterwards.",
                    retry_after=CLOSING_PAUSE,
                )
            elif row.rests_until is not None:
                row = _reuse(connection, source, row, cidr)
            if _holders(connection, row, server_id) == 0:
                connection.execute(
                    insert(segment_holders).values(
                        share_server_id=server_id,
                        domain=row.domain,
                        segmentation_id=row.segmentation_id,
                    )
                )
        return _segment(row)

    def _close(self, server_id: str) -> Segment | None:
        with transaction(engine_for(self._url)) as connection:
            row = _held(connection, server_id)
            if row is None or _holders(connection, row) > 1:
                return None
            connection.execute(update(segments).where(_same(row)).values(closing_for=server_id))
        return _segment(row)

    def _release(self, server_id: str) -> None:
        with transaction(engine_for(self._url)) as connection:
            row = _held(connection, server_id)
            if row is None:
                return
            connection.execute(
                delete(segment_holders).where(segment_holders.c.share_server_id == server_id)
            )
            if _holders(connection, row) == 0:
                connection.execute(
                    update(segments)
                    .where(_same(row))
                    .values(closing_for=None, rests_until=db_now() + self._rest)
                )


def _segment(row: Row[Any]) -> Segment:
    return Segment(row.domain, row.segmentation_id, row.share_network_id, row.cidr)


def _same(row: Row[Any]) -> Any:
    return (segments.c.domain == row.domain) & (segments.c.segmentation_id == row.segmentation_id)


def _held(connection: Connection, server_id: str, *, lock: bool = True) -> Row[Any] | None:
    held = (
        select(segments)
        .join_from(
            segments,
            segment_holders,
            (segments.c.domain == segment_holders.c.domain)
            & (segments.c.segmentation_id == segment_holders.c.segmentation_id),
        )
        .where(segment_holders.c.share_server_id == server_id)
    )
    return connection.execute(held.with_for_update(of=segments) if lock else held).first()


def _holders(connection: Connection, row: Row[Any], server_id: str | None = None) -> int:
    """Count the servers on a segment; with ``server_id``, count that server only (0 or 1)."""
    holders = segment_holders.c
    count = (
        select(func.count())
        .select_from(segment_holders)
        .where(holders.domain == row.domain, holders.segmentation_id == row.segmentation_id)
    )
    if server_id is not None:
        count = count.where(holders.share_server_id == server_id)
    return connection.execute(count).scalar_one()


def _insert(
    connection: Connection, source: SegmentSource, share_network_id: str, cidr: str | None
) -> Row[Any]:
    """Insert a new segment; an IntegrityError means that another transaction took the same."""
    taken = connection.execute(
        select(segments.c.segmentation_id)
        .where(segments.c.domain == source.domain, segments.c.segmentation_id.between(*source.ids))
        .order_by(segments.c.segmentation_id)
    ).scalars()
    number = _first_gap(source.ids, taken)
    if number is None:
        raise Fatal(
            f"Share network {share_network_id} needs a segment and all of {source.domain}, "
            f"{source.ids[0]} to {source.ids[1]}, are in use or rest; enlarge segment_ids or "
            f"delete shares.",
            object=ObjectKind.SHARE_NETWORK.ref(share_network_id),
            code=ErrorCode.NETWORK_FAILED,
        )
    chosen = None if cidr else _free_subnet(connection, source, share_network_id)
    return connection.execute(
        insert(segments)
        .values(
            domain=source.domain,
            segmentation_id=number,
            share_network_id=share_network_id,
            cidr=cidr or chosen,
            chosen_cidr=chosen,
        )
        .returning(*segments.c)
    ).one()


def _reuse(
    connection: Connection, source: SegmentSource, row: Row[Any], cidr: str | None
) -> Row[Any]:
    """End the rest of a share network's segment; its subnet changes if ``cidr`` has changed."""
    chosen = None if cidr else row.chosen_cidr
    if not cidr and not chosen:
        chosen = _free_subnet(connection, source, row.share_network_id)
    return connection.execute(
        update(segments)
        .where(_same(row))
        .values(cidr=cidr or chosen, chosen_cidr=chosen, rests_until=None)
        .returning(*segments.c)
    ).one()


def _first_gap(ids: tuple[int, int], taken: Iterable[int]) -> int | None:
    """Return the lowest number that is not taken; ``taken`` is sorted."""
    first, last = ids
    for before, number in pairwise((first - 1, *taken, last + 1)):
        if number > before + 1:
            return before + 1
    return None


def _free_subnet(connection: Connection, source: SegmentSource, share_network_id: str) -> str:
    """Return the first subnet that overlaps none of those in use or resting."""
    if source.subnets is None:
        raise Fatal(
            f"Share network {share_network_id} names no cidr and its backend has no subnets to "
            f"choose from; name a cidr, or set the network helper's subnets.",
            object=ObjectKind.SHARE_NETWORK.ref(share_network_id),
            code=ErrorCode.CONFIGURATION,
        )
    rows = connection.execute(
        select(segments.c.chosen_cidr).where(
            segments.c.domain == source.domain, segments.c.chosen_cidr.is_not(None)
        )
    ).scalars()
    whole = IPNetwork(source.subnets)
    size = whole.size >> (source.prefix_length - whole.prefixlen)
    position = whole.first
    for network in sorted(map(IPNetwork, rows)):
        if network.version != whole.version or network.last < position:
            continue
        if network.first >= position + size:
            break
        # The next boundary of a subnet after the overlapping one.
        position = whole.first + -(-(network.last + 1 - whole.first) // size) * size
    if position + size - 1 > whole.last:
        raise Fatal(
            f"Share network {share_network_id} needs a subnet and all /{source.prefix_length} of "
            f"{source.subnets} are in use or rest; enlarge subnets or delete shares.",
            object=ObjectKind.SHARE_NETWORK.ref(share_network_id),
            code=ErrorCode.NETWORK_FAILED,
        )
    return f"{IPAddress(position, whole.version)}/{source.prefix_length}"
