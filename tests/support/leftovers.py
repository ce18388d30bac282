"""What a run must leave behind: nothing, neither on the machine nor in its tables.

A run looks for what bears its marks, so that others on the machine do not disturb it. In namespaces
of its own (:mod:`tests.support.isolation`) it can compare everything, and finds what has no mark.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

from sqlalchemy import Engine, func, not_, select

from tests.support.tenants import Machine
from worker.db.audits import is_undone
from worker.db.core.engine import reading
from worker.db.tables.all import metadata
from worker.db.tables.audits import tombstones
from worker.db.tables.main import operations, share_networks, share_servers
from worker.systems.fake_world import World
from worker.systems.network.bridges import short

NOTHING = Machine(*[frozenset[str]()] * 5)
SHARED_FILES = {
    "sharewright-bridges": "the host's lock: whoever removed it would let two in at once",
    "blkid.tab": "blkid's list of devices, which mkfs and mount write",
    "blkid.tab.old": "blkid's list of devices before that",
}
"""What a first use makes in /run and nobody may take away."""

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


def marks(home: Path, engine: Engine) -> list[str]:
    """Return what tells a run's things from everybody else's: its home, and every id it has given.

    Operations name the objects that are gone. Links have no room for an id: they bear its hash.
    """
    of_objects = select(operations.c.resource_id).union(
        select(tombstones.c.id), select(share_servers.c.id), select(share_networks.c.id)
    )
    with reading(engine) as connection:
        ids = sorted(connection.execute(of_objects).scalars())
    return [str(home), *ids, *map(short, ids)]


def of_run(marked: Sequence[str]) -> Iterator[str]:
    """Name everything on the machine that bears one of a run's marks."""
    yield from of_machine(NOTHING, Machine.look(marked))


def of_namespaces(before: Machine, after: Machine, home: Path) -> Iterator[str]:
    """Name all that is new in namespaces of the run's own; of loop devices, those of its home."""
    loops = frozenset(loop for loop in after.loops if str(home) in loop)
    yield from of_machine(before, replace(after, loops=loops))


def of_files(directory: Path, kept: Collection[str] = ()) -> Iterator[str]:
    """Name the files below a directory, apart from those with a name that is kept."""
    for path in sorted(directory.rglob("*")):
        if not path.is_dir() and path.name not in kept:
            yield f"files: left behind: {path}"


def of_fakes(world: World) -> Iterator[str]:
    """Name everything that the fakes still hold."""
    for kind in ("shares", "snapshots", "servers", "ports"):
        for held in getattr(world, kind)():
            yield f"fake {kind}: left behind: {held}"


def of_machine(before: Machine, after: Machine) -> Iterator[str]:
    """Name everything that is there now and was not before; what has gone may be another's."""
    for kind in fields(Machine):
        for thing in sorted(getattr(after, kind.name) - getattr(before, kind.name)):
            yield f"{kind.name}: left behind: {thing}"


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
