"""The segment book: which share network has which segment id and subnet.

A segment has a row while it is in use or rests. The rows that hold it are its share servers; the
transaction that takes the last of them away lets it rest. All transactions about one segment lock
its row first, so that nobody gets on a segment that is being given up.
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
"""Seconds until a look whether a segment that is being dismantled is gone."""


class DatabaseSegmentStore:
    """Implements :class:`~worker.helpers.network.base.SegmentBook` on PostgreSQL and SQLite.

    ``rest`` is how many seconds a segment rests that nobody holds any more.
    """

    def __init__(self, url: str, *, rest: float) -> None:
        self._url = url
        self._rest = rest

    def take(
        self, source: SegmentSource, share_network_id: str, server_id: str, cidr: str | None
    ) -> Segment:
        """Put the server on its share network's segment; raises as the Protocol promises."""
        return racing()(self._take, source, share_network_id, server_id, cidr)

    def held(self, server_id: str) -> Segment | None:
        """Return the segment that the server is on."""
        with reading(engine_for(self._url)) as connection:
            row = _held(connection, server_id, lock=False)
        return None if row is None else _segment(row)

    def close(self, server_id: str) -> Segment | None:
        """Return the server's segment if nobody else is on it, and let nobody else on it."""
        return racing()(self._close, server_id)

    def release(self, server_id: str) -> None:
        """Take the server off its segment, which rests if it was the last."""
        racing()(self._release, server_id)

    def holdings(self) -> list[Holding]:
        """Return who is on which segment."""
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
                row = _given(connection, source, share_network_id, cidr)
            elif row.closing_for is not None:
                raise NotReady(
                    f"The segment {row.segmentation_id} of share network {share_network_id} is "
                    f"being removed with its last share server; a new one follows.",
                    retry_after=CLOSING_PAUSE,
                )
            elif row.rests_until is not None:
                row = _given_back(connection, source, row, cidr)
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
    """Count the servers on a segment, or whether one server is on it."""
    holders = segment_holders.c
    count = (
        select(func.count())
        .select_from(segment_holders)
        .where(holders.domain == row.domain, holders.segmentation_id == row.segmentation_id)
    )
    if server_id is not None:
        count = count.where(holders.share_server_id == server_id)
    return connection.execute(count).scalar_one()


def _given(
    connection: Connection, source: SegmentSource, share_network_id: str, cidr: str | None
) -> Row[Any]:
    """Write a new segment; an IntegrityError means that somebody was faster with the same."""
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


def _given_back(
    connection: Connection, source: SegmentSource, row: Row[Any], cidr: str | None
) -> Row[Any]:
    """End the rest of a share network's segment, whose wish for a subnet may have changed."""
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
    """Return the lowest number that is not taken; ``taken`` come in order."""
    first, last = ids
    for before, number in pairwise((first - 1, *taken, last + 1)):
        if number > before + 1:
            return before + 1
    return None


def _free_subnet(connection: Connection, source: SegmentSource, share_network_id: str) -> str:
    """Return the first subnet that overlaps none that was chosen before."""
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
        # The next boundary of a subnet behind the one that is in the way.
        position = whole.first + -(-(network.last + 1 - whole.first) // size) * size
    if position + size - 1 > whole.last:
        raise Fatal(
            f"Share network {share_network_id} needs a subnet and all /{source.prefix_length} of "
            f"{source.subnets} are in use or rest; enlarge subnets or delete shares.",
            object=ObjectKind.SHARE_NETWORK.ref(share_network_id),
            code=ErrorCode.NETWORK_FAILED,
        )
    return f"{IPAddress(position, whole.version)}/{source.prefix_length}"
