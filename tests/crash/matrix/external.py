"""The independent checker: what really exists, and what the journal says of it.

It reads the fakes' outside worlds and our tables by SQL of its own. None of the code that it
judges is used, and nothing is judged by what an answer said.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine, text

KINDS: Final = ("lost", "stuck", "leaked", "duplicated")
MAKING: Final = (
    *("allocate_network", "get_share_server", "create_share"),
    *("create_share_from_snapshot", "create_snapshot"),
)
"""Calls that make something under an id that is never used again: each has one effect at most."""
_OUTSIDE: Final = (
    *("shares", "snapshots", "servers", "ports", "networks", "server_addresses"),
    "pools WHERE taken <> 0",
)
_FAILED_BUILD: Final = "status = 'error' AND deleter_id IS NULL"
"""A row that only tells why a build failed: nothing of it may be outside."""
_ROWS: Final = (
    "SELECT project_id AS project, shares.* FROM shares",
    "SELECT project_id AS project, snapshots.* FROM snapshots",
    f"SELECT project_id AS project, share_servers.* FROM share_servers WHERE NOT ({_FAILED_BUILD})",
    "SELECT project_id AS project, access_rules.* FROM access_rules",
    "SELECT share_server_id AS server, address FROM addresses WHERE share_server_id IS NOT NULL",
    "SELECT share_server_id AS server, share_id FROM share_server_refs",
    "SELECT * FROM storage_pools WHERE allocated_gib <> 0 OR shares <> 0",
)
STABLE: Final = {"available", "error", "active"}


@dataclass(frozen=True, slots=True)
class Finding:
    """A broken promise, and to which project it happened."""

    kind: str
    project: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Things:
    """What there is, in one place: ids, and what belongs to each."""

    shares: Mapping[str, tuple[str, int]]
    """Share id: its server ("" without one) and its GiB."""
    snapshots: Mapping[str, str]
    """Snapshot id: its share."""
    servers: Mapping[str, str]
    """Server id: its share network."""
    ports: Mapping[str, int]
    """Server id: how many addresses it holds."""
    rules: frozenset[tuple[str, str, str]]
    """Share, address, level."""


class ExternalSystem:
    """Reads one deployment: its tables, and the worlds of its backends."""

    def __init__(self, engine: Engine, worlds: Sequence[Path]) -> None:
        self.engine = engine
        self.worlds = worlds

    def rows(self, statement: str, **values: Any) -> list[dict[str, Any]]:
        """Ask our database."""
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(text(statement), values).mappings()]

    def world_rows(self, statement: str) -> list[dict[str, Any]]:
        """Ask all worlds."""
        found: list[dict[str, Any]] = []
        for path in self.worlds:
            if path.exists():
                with closing(sqlite3.connect(path, timeout=60)) as world:
                    world.row_factory = sqlite3.Row
                    found += [dict(row) for row in world.execute(statement)]
        return found

    def operations(self) -> list[dict[str, Any]]:
        """Every operation of every project, in the order of acceptance."""
        return self.rows("SELECT * FROM operations ORDER BY seq")

    def standing(self, project: str) -> Iterator[Finding]:
        """Compare, for a project in which nothing is in flight."""
        told, real = self._told(project), self._real(project)
        for name in ("shares", "snapshots", "servers", "ports", "rules"):
            yield from _differences(project, name, getattr(told, name), getattr(real, name))
        networks = Counter(real.servers.values())
        for network, count in networks.items():
            if count > 1:
                sentence = f"{count} share servers on share network {network}: one had room"
                yield Finding("duplicated", project, sentence)
        yield from self._transitional(project)
        yield from self._references(project)

    def _transitional(self, project: str) -> Iterator[Finding]:
        for table, column in (
            *(("shares", "status"), ("snapshots", "status"), ("share_servers", "status")),
            ("access_rules", "state"),
        ):
            for row in self.rows(
                f"SELECT id, {column} AS status FROM {table} WHERE project_id = :project",
                project=project,
            ):
                if row["status"] not in STABLE:
                    sentence = f"{table} {row['id']} is still {row['status']}"
                    yield Finding("stuck", project, sentence)

    def _references(self, project: str) -> Iterator[Finding]:
        for row in self.rows(
            "SELECT id, shares, (SELECT count(*) FROM share_server_refs r"
            " WHERE r.share_server_id = s.id) AS refs, (SELECT count(*) FROM shares h"
            " WHERE h.share_server_id = s.id AND h.status = 'available') AS users"
            " FROM share_servers s WHERE project_id = :project",
            project=project,
        ):
            if not row["shares"] == row["refs"] == row["users"]:
                yield Finding("leaked", project, f"references of a share server: {row}")

    def _told(self, project: str) -> Things:
        shares = self.rows("SELECT * FROM shares WHERE project_id = :project", project=project)
        made = [row for row in shares if row["status"] == "available"]
        servers = self.rows(
            "SELECT id, share_network_id FROM share_servers WHERE project_id = :project"
            f" AND NOT ({_FAILED_BUILD})",
            project=project,
        )
        rules = self.rows(
            "SELECT share_id, access_to, access_level FROM access_rules"
            " WHERE project_id = :project AND state = 'active'",
            project=project,
        )
        snapshots = self.rows(
            "SELECT id, share_id FROM snapshots"
            " WHERE project_id = :project AND status = 'available'",
            project=project,
        )
        return Things(
            {row["id"]: (row["share_server_id"] or "", row["size"]) for row in made},
            {row["id"]: row["share_id"] for row in snapshots},
            {row["id"]: row["share_network_id"] for row in servers},
            {row["id"]: 1 for row in servers},
            frozenset((r["share_id"], r["access_to"], r["access_level"]) for r in rules),
        )

    def _real(self, project: str) -> Things:
        own = self.rows("SELECT id FROM operations WHERE project_id = :project", project=project)
        known = self._servers_of({row["id"] for row in own})
        shares = [
            row for row in self.world_rows("SELECT * FROM shares") if row["project"] == project
        ]
        mine = {row["id"] for row in shares}
        servers = [
            row for row in self.world_rows("SELECT * FROM servers") if row["project"] == project
        ]
        ports = Counter(
            row["server"]
            for row in (
                *self.world_rows("SELECT server FROM ports"),
                *self.rows(
                    "SELECT share_server_id AS server FROM addresses"
                    " WHERE share_server_id IS NOT NULL"
                ),
            )
            if row["server"] in known
        )
        snapshots = self.world_rows("SELECT id, share FROM snapshots")
        return Things(
            {row["id"]: (row["server"], row["size"]) for row in shares},
            {row["id"]: row["share"] for row in snapshots if row["share"] in mine},
            {row["id"]: row["network"] for row in servers},
            dict(ports),
            frozenset(
                (row["id"], to, level) for row in shares for to, level in json.loads(row["rules"])
            ),
        )

    def _servers_of(self, operations: Collection[str]) -> dict[str, str]:
        """Share servers that operations ever had to do with, by the worlds' own log."""
        quoted = ", ".join(f"'{one}'" for one in operations) or "''"
        calls = self.world_rows(
            "SELECT object_id, operation_id FROM calls WHERE name IN"
            " ('get_share_server', 'delete_share_server', 'allocate_network')"
            f" AND operation_id IN ({quoted})"
        )
        return {row["object_id"]: row["operation_id"] for row in calls}

    def owners(self) -> dict[str, str]:
        """The project of each share server that was ever begun."""
        projects = {row["id"]: row["project_id"] for row in self.operations()}
        return {server: projects[one] for server, one in self._servers_of(projects).items()}

    def repeated(self) -> Iterator[Finding]:
        """What was made twice under one id, and addresses that were given out twice."""
        projects = {row["id"]: row["project_id"] for row in self.operations()}
        effects: dict[tuple[str, str], list[str]] = {}
        for row in self.world_rows("SELECT * FROM calls ORDER BY id"):
            project = projects.get(row["operation_id"], "")
            if row["effect"] and row["name"] in MAKING:
                effects.setdefault((row["name"], row["object_id"]), []).append(project)
            if "given out twice" in row["message"]:
                yield Finding("duplicated", project, row["message"])
        for (name, thing), where in effects.items():
            if len(where) > 1:
                yield Finding("duplicated", where[0], f"{name} of {thing} {len(where)} times")
        for row in self.rows(
            "SELECT address, count(*) AS n FROM addresses WHERE share_server_id IS NOT NULL"
            " GROUP BY domain, address HAVING count(*) > 1"
        ):
            yield Finding("duplicated", "", f"address {row['address']} is held {row['n']} times")

    def left(self) -> Iterator[Finding]:
        """What is still there when every run has deleted all that it made."""
        owners = self.owners()
        for where, ask, statement in (
            *(("outside", self.world_rows, f"SELECT * FROM {name}") for name in _OUTSIDE),
            *(("row", self.rows, statement) for statement in _ROWS),
        ):
            for row in ask(statement):
                owner = row.get("project") or owners.get(row.get("server") or "", "")
                yield Finding(
                    "leaked", owner, f"{where}: {statement.partition(' FROM ')[2]}: {row}"
                )


def _differences(project: str, name: str, told: Any, real: Any) -> Iterator[Finding]:
    if told == real:
        return
    if isinstance(told, frozenset):
        told, real = dict.fromkeys(told, True), dict.fromkeys(real, True)
    for thing in sorted(real.keys() - told.keys()):
        yield Finding("leaked", project, f"{name} {thing} exists and no row says so")
    for thing in sorted(told.keys() - real.keys()):
        yield Finding("leaked", project, f"{name} {thing} has a row and does not exist")
    for thing in sorted(told.keys() & real.keys()):
        if told[thing] != real[thing]:
            sentence = f"{name} {thing} is {real[thing]}, and its row says {told[thing]}"
            yield Finding("leaked", project, sentence)
