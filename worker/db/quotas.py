"""Limits of projects, and the usage that counts against them.

Usage and reservations are not stored in counters, which could drift: they are derived from the
rows of shares, snapshots, share networks and unfinished extends, under one lock per project. A
transaction takes that lock first, so that it causes no deadlock with those on objects and
operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    bindparam,
    case,
    delete,
    func,
    select,
)
from sqlalchemy import text as sql_text

from worker.db.core.engine import db_now, insert_into
from worker.db.core.prepared import Prepared
from worker.db.tables.main import operations, share_networks, shares, snapshots
from worker.db.tables.quotas import quotas
from worker.model import LIVE_STATES, OperationState, QuotaResource, ShareStatus, SnapshotStatus

UNLIMITED: Final = -1
WHOLE_PROJECT: Final = ""
"""Stands for a share type's id in limits that are not those of one share type."""
_LOCK_CLASS: Final = 0x5157  # any number that no other advisory lock of Sharewright uses
_q = quotas.c
_LIMITS = Prepared(
    select(_q.share_type_id, _q.resource, _q.maximum).where(_q.project_id == bindparam("project"))
)


@dataclass(frozen=True, slots=True)
class Usage:
    """A project's usage of one resource, and what its unfinished operations will add to it."""

    in_use: int = 0
    reserved: int = 0

    @property
    def total(self) -> int:
        """The sum that counts against the limit."""
        return self.in_use + self.reserved


Limits = Mapping[tuple[str, QuotaResource], int]
"""Limits by share type (or :data:`WHOLE_PROJECT`) and resource; a missing one is unlimited."""


def limits(
    connection: Connection, project_id: str, defaults: Mapping[QuotaResource, int]
) -> Limits:
    """Return a project's limits, without unlimited ones; ``defaults`` where none is set."""
    found = {(WHOLE_PROJECT, resource): maximum for resource, maximum in defaults.items()}
    for row in _LIMITS.all(connection, project=project_id):
        found[row.share_type_id, QuotaResource(row.resource)] = row.maximum
    return {key: maximum for key, maximum in found.items() if maximum != UNLIMITED}


def hold(connection: Connection, project_id: str) -> None:
    """Lock a project's usage until the commit; a no-op on SQLite, which has only one writer."""
    if connection.dialect.name == "postgresql":
        connection.execute(
            sql_text("SELECT pg_advisory_xact_lock(:class, hashtext(:project))"),
            {"class": _LOCK_CLASS, "project": project_id},
        )


def set_limits(
    connection: Connection,
    project_id: str,
    share_type_id: str,
    maximums: Mapping[QuotaResource, int],
) -> None:
    """Set limits of a project, or of its objects of one share type; others stay."""
    for resource, maximum in maximums.items():
        values = {"maximum": maximum, "updated_at": db_now()}
        connection.execute(
            insert_into(connection, quotas)
            .values(
                project_id=project_id,
                share_type_id=share_type_id,
                resource=resource.value,
                **values,
            )
            .on_conflict_do_update(
                index_elements=[_q.project_id, _q.share_type_id, _q.resource], set_=values
            )
        )


def unset_limits(connection: Connection, project_id: str, share_type_id: str) -> None:
    """Remove the limits of a project (or of its objects of one share type)."""
    connection.execute(
        delete(quotas).where(_q.project_id == project_id, _q.share_type_id == share_type_id)
    )


def forget_share_type(connection: Connection, share_type_id: str) -> None:
    """Remove the limits of a share type that is deleted."""
    connection.execute(delete(quotas).where(_q.share_type_id == share_type_id))


def usage(
    connection: Connection, project_id: str, share_type_id: str
) -> dict[QuotaResource, Usage]:
    """Return a project's usage of each resource, in all or of one share type.

    An object counts until its row is deleted, even while it is in error or being deleted.
    """
    share = [shares.c.project_id == project_id]
    if share_type_id:
        share.append(shares.c.share_type_id == share_type_id)
    made = _counts(connection, select(shares).where(*share), ShareStatus.CREATING.value)
    of_shares = select(snapshots).where(snapshots.c.project_id == project_id)
    if share_type_id:
        of_shares = of_shares.join(shares, shares.c.id == snapshots.c.share_id).where(*share)
    kept = _counts(connection, of_shares, SnapshotStatus.CREATING.value)
    found = {
        QuotaResource.SHARES: Usage(made.number - made.coming, made.coming),
        QuotaResource.GIGABYTES: Usage(
            made.gib - made.coming_gib,
            made.coming_gib + sum(_growth(connection, and_(*share)).values()),
        ),
        QuotaResource.SNAPSHOTS: Usage(kept.number - kept.coming, kept.coming),
        QuotaResource.SNAPSHOT_GIGABYTES: Usage(kept.gib - kept.coming_gib, kept.coming_gib),
    }
    if not share_type_id:
        networks = select(func.count()).select_from(share_networks)
        found[QuotaResource.SHARE_NETWORKS] = Usage(
            connection.execute(
                networks.where(share_networks.c.project_id == project_id)
            ).scalar_one()
        )
    return found


def document(
    connection: Connection,
    project_id: str,
    share_type_id: str,
    defaults: Mapping[QuotaResource, int],
) -> dict[str, Any]:
    """Return limit, usage and reservation of each resource, as the result of ``show_quota``."""
    found = limits(connection, project_id, defaults)
    return {
        "project_id": project_id,
        "share_type_id": share_type_id or None,
        **{
            resource.value: {
                "limit": found.get((share_type_id, resource), UNLIMITED),
                "in_use": has.in_use,
                "reserved": has.reserved,
            }
            for resource, has in usage(connection, project_id, share_type_id).items()
        },
    }


def growth_of(connection: Connection, share_id: str) -> int:
    """Return the number of GiB that the unfinished extends of a share will add to it."""
    return sum(_growth(connection, shares.c.id == share_id).values())


def _counts(connection: Connection, objects: Select[Any], coming: str) -> Row[Any]:
    found = objects.subquery()
    o = found.c
    is_coming = o.status == coming
    return connection.execute(
        select(
            func.count().label("number"),
            func.coalesce(func.sum(o.size), 0).label("gib"),
            func.coalesce(func.sum(case((is_coming, 1), else_=0)), 0).label("coming"),
            func.coalesce(func.sum(case((is_coming, o.size), else_=0)), 0).label("coming_gib"),
        ).select_from(found)
    ).one()


def _growth(connection: Connection, of: ColumnElement[bool]) -> dict[str, int]:
    """Return the number of GiB by which each share will grow to the largest requested size."""
    o = operations.c
    live = [OperationState.PENDING.value, *map(str, LIVE_STATES)]
    rows = connection.execute(
        select(o.resource_id, o.payload, shares.c.size)
        .join(shares, and_(o.resource_kind == "share", shares.c.id == o.resource_id))
        .where(o.verb == "extend_share", o.state.in_(live), of)
    )
    growth: dict[str, int] = {}
    for row in rows:
        more = int(row.payload["new_size"]) - row.size
        growth[row.resource_id] = max(more, growth.get(row.resource_id, 0))
    return growth
