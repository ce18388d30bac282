"""Rows that belong to a backend: counting, renaming and deleting them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Table, Update, delete, func, or_, select, update
from sqlalchemy.exc import DBAPIError

from worker.db import audits
from worker.db.core.engine import engine_for, reading
from worker.db.tables.audits import audit_findings, tombstones
from worker.db.tables.main import (
    access_rules,
    address_cursors,
    addresses,
    backends,
    operations,
    share_server_refs,
    share_servers,
    shares,
    snapshots,
    storage_pools,
)
from worker.db.tables.networks import dhcp_leases, segment_holders, segments
from worker.errors import ConfigurationError
from worker.model import OwnerKind, ServerStatus, ShareStatus

_NAMED_BY: Final = ("flat", "vlan", "vxlan", "nova", "nova-reserved")
"""Network helpers without a ``name`` of their own keep addresses and segments under one of these
and the backend's name."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """Number of rows that belong to one backend; ``live``: a start without it is refused."""

    shares: int = 0
    servers: int = 0
    operations: int = 0
    live: bool = False

    def __bool__(self) -> bool:
        """Tell whether the backend has any row."""
        return bool(self.shares or self.servers or self.operations)

    def __str__(self) -> str:
        """Describe the numbers for an error message."""
        return (
            f"{self.shares} shares, {self.servers} share servers and {self.operations} operations "
            "under way"
        )


def holdings(connection: Connection) -> dict[str, Holdings]:
    """Count the rows of each backend that has any."""
    s, v, o = shares.c, share_servers.c, operations.c
    has_storage = or_(s.status != ShareStatus.ERROR.value, s.allocated_gib > 0)
    may_exist = v.status != ServerStatus.ERROR.value
    counted: dict[str, dict[str, Any]] = {}
    for name, column, live, condition in (
        ("shares", s.backend, has_storage, None),
        ("servers", v.backend, may_exist, None),
        ("operations", o.backend, o.phase.is_not(None), o.phase.is_not(None)),
    ):
        query = select(
            column, func.count().label("number"), func.count().filter(live).label("live")
        )
        if condition is not None:
            query = query.where(condition)
        for row in connection.execute(query.where(column.is_not(None)).group_by(column)):
            found = counted.setdefault(row.backend, {"live": False})
            found[name] = row.number
            found["live"] = found["live"] or row.live > 0
    return {backend: Holdings(**found) for backend, found in sorted(counted.items())}


def check_configured(url: str, configured: Collection[str]) -> None:
    """Refuse to start with a configuration that lacks a backend in use.

    Raises :class:`~worker.errors.ConfigurationError`. Does nothing when the database cannot be
    reached or has no tables yet: the process waits for both later.
    """
    engine = engine_for(url)
    try:
        with reading(engine) as connection:
            found = holdings(connection)
    except DBAPIError:
        return
    finally:
        engine.dispose()  # a connection must not be open when the process forks
    for name, held in found.items():
        if held.live and name not in configured:
            raise ConfigurationError(
                f"The configuration has no backend {name}, which has {held}, and no worker "
                f"could serve them. Put [backends.{name}] back; or, if the backend has another "
                f"name now, run `sharewright backend rename {name} NEW`; or, if it no longer "
                f"exists, run `sharewright backend forget {name} --force`."
            )


def rename(connection: Connection, old: str, new: str, *, rename_domains: bool) -> None:
    """Replace a backend's name in every row.

    The caller has made sure that no object uses the new name. Pools that were already reported
    under the new name are deleted.
    """
    for table in (backends, storage_pools):
        connection.execute(delete(table).where(_name(table) == new))
    for table in (shares, share_servers, operations, backends, storage_pools, tombstones):
        connection.execute(_renaming(table, _name(table), old, new))
    connection.execute(
        update(operations)
        .where(operations.c.resource_kind == "backend", operations.c.resource_id == old)
        .values(resource_id=new)
    )
    connection.execute(delete(audit_findings).where(audit_findings.c.backend.in_((old, new))))
    if rename_domains:
        for table in (addresses, address_cursors, segments, segment_holders):
            for kind in _NAMED_BY:
                connection.execute(
                    _renaming(table, table.c.domain, f"{kind}:{old}", f"{kind}:{new}")
                )


def _name(table: Table) -> Any:
    return table.c.name if table is backends else table.c.backend


def _renaming(table: Table, column: Any, old: str, new: str) -> Update:
    return update(table).where(column == old).values({column.name: new})


def forget(connection: Connection, name: str) -> list[tuple[OwnerKind, str]]:
    """Delete all rows of a backend, leaving tombstones; return kind and id of each object.

    The addresses of its share servers stay taken, because the servers may still use them.
    """
    server_ids = _ids(connection, select(share_servers.c.id).where(share_servers.c.backend == name))
    share_ids = _ids(connection, select(shares.c.id).where(shares.c.backend == name))
    of_shares = select(shares.c.id).where(shares.c.backend == name)
    snapshot_ids = _ids(
        connection, select(snapshots.c.id).where(snapshots.c.share_id.in_(of_shares))
    )
    forgotten = [
        *((OwnerKind.SNAPSHOT, one) for one in snapshot_ids),
        *((OwnerKind.SHARE, one) for one in share_ids),
        *((OwnerKind.SHARE_SERVER, one) for one in server_ids),
    ]
    for kind, one in forgotten:
        audits.add_tombstone(connection, kind, one)
    of_servers = select(share_servers.c.id).where(share_servers.c.backend == name)
    for table, owners in (
        (access_rules.c.share_id, of_shares),
        (snapshots.c.share_id, of_shares),
        (share_server_refs.c.share_id, of_shares),
        (segment_holders.c.share_server_id, of_servers),
        (dhcp_leases.c.share_server_id, of_servers),
    ):
        connection.execute(delete(table.table).where(table.in_(owners)))
    for whole in (shares, share_servers, storage_pools, audit_findings, backends):
        connection.execute(delete(whole).where(_name(whole) == name))
    return forgotten


def _ids(connection: Connection, query: Any) -> list[str]:
    return [str(one) for one in connection.execute(query).scalars()]
