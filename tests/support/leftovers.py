"""What a run must leave behind: nothing. The machine and the tables are compared, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields

from sqlalchemy import Engine, func, not_, select

from tests.support.tenants import Machine
from worker.db.audits import is_undone
from worker.db.core.engine import reading
from worker.db.tables.all import metadata

KEPT_TABLES = frozenset(
    {
        "operations",
        "operation_steps",
        "operation_aliases",
        "counters",
        "backends",
        "storage_pools",
        "address_cursors",
        "addresses",
        "segments",
        "share_server_failures",
        "tombstones",
    }
)
"""Records of what was done, and of what the backends are; the rest are objects and must be gone."""


def of_machine(before: Machine, after: Machine) -> Iterator[str]:
    """Name everything that is there now and was not before, and the other way round."""
    for kind in fields(Machine):
        was, now = getattr(before, kind.name), getattr(after, kind.name)
        for thing in sorted(now - was):
            yield f"{kind.name}: left behind: {thing}"
        for thing in sorted(was - now):
            yield f"{kind.name}: gone: {thing}"


def table_counts(engine: Engine) -> Mapping[str, int]:
    """How many rows each table of objects has; of share servers, without records of failures."""
    objects = {
        table.name: select(func.count()).select_from(table)
        for table in metadata.sorted_tables
        if table.name not in KEPT_TABLES
    }
    # Nothing may be behind such a record: machine, addresses and segments are compared as well.
    objects["share_servers"] = objects["share_servers"].where(not_(is_undone()))
    with reading(engine) as connection:
        return {name: connection.execute(counted).scalar_one() for name, counted in objects.items()}


def of_tables(engine: Engine) -> Iterator[str]:
    """Name every table of objects that has rows, and what is not given back."""
    for name, count in table_counts(engine).items():
        if count:
            yield f"tables: {name} still has {count} row{'s' if count > 1 else ''}"
    pools, addresses = metadata.tables["storage_pools"], metadata.tables["addresses"]
    segments = metadata.tables["segments"]
    with reading(engine) as connection:
        promised = connection.execute(
            select(pools.c.backend).where((pools.c.allocated_gib != 0) | (pools.c.shares != 0))
        ).all()
        held = connection.execute(
            select(addresses.c.address).where(addresses.c.share_server_id.is_not(None))
        ).all()
        in_use = connection.execute(
            select(segments.c.domain, segments.c.segmentation_id).where(
                segments.c.rests_until.is_(None)
            )
        ).all()
    for row in in_use:
        yield f"tables: segment {row.segmentation_id} of {row.domain} is still in use"
    for row in promised:
        yield f"tables: a pool of backend {row.backend} is still promised to a share"
    for row in held:
        yield f"tables: address {row.address} is still held"
