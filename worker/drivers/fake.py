"""The fake share driver: shares that are rows of a :class:`~worker.systems.fake_world.World`."""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import ClassVar, Final

from pydantic import Field

from worker.drivers.base import Ensure, Resize, ShareDriver
from worker.errors import ErrorCode, Fatal, NotReady, ObjectKind
from worker.model import (
    AccessRule,
    DriverMode,
    ExportLocation,
    OwnedResource,
    OwnerKind,
    RequestContext,
    Share,
    ShareServer,
    Snapshot,
    StoragePool,
)
from worker.plugin import Audit, BackendContext, Options
from worker.systems.fake_world import Change, Fake, FakeOptions
from worker.systems.shell.base import ShellFor

SINGLE_SERVER_ADDRESS: Final = "192.0.2.10"
"""Address in the export locations of ``single_svm`` shares (a documentation address)."""


class FakeDriverOptions(FakeOptions):
    """Options of the fake share driver."""

    pools: dict[str, int] = Field(
        {"pool": 1_000_000}, description="Storage pools and their sizes in GiB."
    )
    capabilities: dict[str, str] = Field(
        default_factory=dict, description="Capabilities that every pool reports."
    )
    copy_seconds: float = Field(
        0.0,
        ge=0,
        description="How long the data of a snapshot is copied into a new share, after the copy "
        "was started.",
    )
    check_servers: bool = Field(
        True,
        description="Whether share servers that the fake compute helper has not made in this "
        "world are refused; false beside another compute helper.",
    )


class FakeDriverAudit(Audit):
    """Lists and removes the shares and snapshots in the fake world."""

    def owned(self: Fake, context: RequestContext) -> Iterable[OwnedResource]:
        """List the backend's shares, and the snapshots of all backends."""
        with self.world.call(
            "owned_by_driver", self.backend.name, context, code=ErrorCode.STORAGE_FAILED
        ) as change:
            shares = change.all("SELECT id FROM shares WHERE backend = ?", self.backend.name)
            snapshots = change.all("SELECT id FROM snapshots")
        return [
            *(OwnedResource("share", row["id"], OwnerKind.SHARE, row["id"]) for row in shares),
            *(
                OwnedResource("snapshot", row["id"], OwnerKind.SNAPSHOT, row["id"])
                for row in snapshots
            ),
        ]

    def remove_orphan(self: Fake, context: RequestContext, owned: OwnedResource) -> None:
        """Remove the share or snapshot, and free its capacity."""
        with self.world.call(
            "remove_orphan", owned.id, context, code=ErrorCode.STORAGE_FAILED
        ) as change:
            if owned.kind == "snapshot":
                change.write("DELETE FROM snapshots WHERE id = ?", owned.id)
                return
            change.write(
                "UPDATE pools SET taken = taken - (SELECT size FROM shares WHERE id = ?1)"
                " WHERE (backend, name) = (SELECT backend, pool FROM shares WHERE id = ?1)",
                owned.id,
            )
            change.write("DELETE FROM shares WHERE id = ?", owned.id)


class FakeShareDriver(FakeDriverAudit, ShareDriver, Resize, Ensure):
    """Keeps shares as rows of the fake world, and refuses what a real system would refuse."""

    OptionsModel: ClassVar[type[Options]] = FakeDriverOptions
    modes: ClassVar[frozenset[DriverMode]] = frozenset(DriverMode)
    protocols: ClassVar[frozenset[str]] = frozenset({"NFS", "CIFS"})
    options: FakeDriverOptions

    def __init__(
        self, backend: BackendContext, options: FakeDriverOptions, shell_for: ShellFor
    ) -> None:
        super().__init__(backend, options, shell_for)
        self.world = options.world_of(backend)

    def create_share(
        self, context: RequestContext, share: Share, server: ShareServer | None
    ) -> tuple[ExportLocation, ...]:
        """Create an empty share."""
        with self._call("create_share", share, context, server) as change:
            return self._create(change, share, server, origin="", content="", used=0)

    def create_share_from_snapshot(
        self, context: RequestContext, share: Share, snapshot: Snapshot, server: ShareServer | None
    ) -> tuple[ExportLocation, ...]:
        """Create a share with the snapshot's content."""
        with self._call("create_share_from_snapshot", share, context, server) as change:
            kept = change.one("SELECT * FROM snapshots WHERE id = ?", snapshot.id)
            if kept is None:
                raise _refused(f"Snapshot {snapshot.id} does not exist.", f"snapshot {snapshot.id}")
            if share.size < kept["size"]:
                raise _refused(
                    f"Share {share.id} of {share.size} GiB cannot hold snapshot {snapshot.id} of "
                    f"{kept['size']} GiB.",
                    ObjectKind.SHARE.ref(share.id),
                )
            locations = self._create(
                change,
                share,
                server,
                origin=snapshot.id,
                content=kept["content"],
                used=kept["used"],
            )
            self._copy(change, share)
        return locations

    def _copy(self, change: Change, share: Share) -> None:
        """Start the copy, or check its progress; it continues between calls.

        Raises :class:`~worker.errors.NotReady` while it runs.
        """
        if not self.options.copy_seconds:
            return
        copy = change.one("SELECT done_at FROM copies WHERE share = ?", share.id)
        now = time.monotonic()
        done_at = copy["done_at"] if copy else now + self.options.copy_seconds
        if copy is None:
            change.write("INSERT INTO copies (share, done_at) VALUES (?, ?)", share.id, done_at)
        if done_at > now:
            change.then = NotReady(
                f"Share {share.id} is copied for another {done_at - now:.1f} s.",
                retry_after=done_at - now,
                limit=10 * self.options.copy_seconds,
            )

    def delete_share(
        self, context: RequestContext, share: Share, server: ShareServer | None
    ) -> None:
        """Delete the share."""
        with self._call("delete_share", share, context, server) as change:
            found = change.one("SELECT * FROM shares WHERE id = ?", share.id)
            if found is not None:
                change.write("DELETE FROM shares WHERE id = ?", share.id)
                if self.options.copy_seconds:  # a world of the first release has no such table
                    change.write("DELETE FROM copies WHERE share = ?", share.id)
                self._take_capacity(change, found["pool"], -found["size"])

    def create_snapshot(
        self, context: RequestContext, snapshot: Snapshot, share: Share, server: ShareServer | None
    ) -> None:
        """Create a snapshot of the share's content."""
        with self._call("create_snapshot", snapshot, context, server, share.id) as change:
            kept = change.one("SELECT * FROM snapshots WHERE id = ?", snapshot.id)
            if kept is not None:
                if kept["share"] != share.id:
                    raise _refused(
                        f"Snapshot {snapshot.id} exists already, of share {kept['share']}.",
                        ObjectKind.SNAPSHOT.ref(snapshot.id),
                    )
                return
            self._existing(change, share)
            change.write(
                "INSERT INTO snapshots (id, share, size, used, content)"
                " SELECT ?, id, size, used, content FROM shares WHERE id = ?",
                snapshot.id,
                share.id,
            )

    def delete_snapshot(
        self, context: RequestContext, snapshot: Snapshot, share: Share, server: ShareServer | None
    ) -> None:
        """Delete the snapshot."""
        with self._call("delete_snapshot", snapshot, context, server, share.id) as change:
            change.write("DELETE FROM snapshots WHERE id = ?", snapshot.id)

    def update_access(
        self,
        context: RequestContext,
        share: Share,
        server: ShareServer | None,
        rules: Sequence[AccessRule],
        generation: int,
    ) -> None:
        """Replace the rules unless a newer set is enforced already."""
        with self._call("update_access", share, context, server) as change:
            for rule in rules:
                if rule.access_type != "ip" or rule.access_level not in {"ro", "rw"}:
                    raise _refused(
                        f"Rule {rule.id} of share {share.id} is neither ip ro nor ip rw.",
                        ObjectKind.ACCESS_RULE.ref(rule.id),
                    )
            self._existing(change, share)
            pairs = sorted((rule.access_to, rule.access_level) for rule in rules)
            change.write(
                "UPDATE shares SET rules = ?, generation = ? WHERE id = ? AND generation < ?",
                json.dumps(pairs),
                generation,
                share.id,
                generation,
            )

    def extend_share(
        self, context: RequestContext, share: Share, new_size: int, server: ShareServer | None
    ) -> None:
        """Raise the limit; refuse to lower it."""
        with self._call("extend_share", share, context, server) as change:
            found = self._existing(change, share)
            if new_size < found["size"]:
                raise _refused(
                    f"Share {share.id} of {found['size']} GiB cannot be shrunk to {new_size} GiB.",
                    ObjectKind.SHARE.ref(share.id),
                )
            if new_size > found["size"]:
                self._take_capacity(change, found["pool"], new_size - found["size"])
                change.write("UPDATE shares SET size = ? WHERE id = ?", new_size, share.id)

    def share_size(self, context: RequestContext, share: Share, server: ShareServer | None) -> int:
        """Return the share's limit in GiB."""
        with self._call("share_size", share, context, server) as change:
            return int(self._existing(change, share)["size"])

    def ensure_share(
        self, context: RequestContext, share: Share, server: ShareServer | None
    ) -> tuple[ExportLocation, ...]:
        """Export the share again, with its content and rules."""
        with self._call("ensure_share", share, context, server) as change:
            self._existing(change, share)
            address = self._address(change, share, server)
            change.write("UPDATE shares SET exported = 1 WHERE id = ? AND exported = 0", share.id)
            return _locations(share, address)

    def serves(self, context: RequestContext) -> bool:
        """Return whether every share of the predefined server is exported."""
        with self.world.call(
            "serves", self.backend.name, context, code=ErrorCode.STORAGE_FAILED
        ) as change:
            lost = change.one(
                "SELECT id FROM shares WHERE backend = ? AND server = '' AND exported = 0",
                self.backend.name,
            )
            return lost is None

    def storage_pools(self, context: RequestContext) -> tuple[StoragePool, ...]:
        """Return each pool with its free capacity, in GiB."""
        with self.world.call(
            "storage_pools",
            self.backend.name,
            context,
            code=ErrorCode.STORAGE_FAILED,
            delay=self.options.delay_of("storage_pools"),
        ) as change:
            rows = change.all("SELECT * FROM pools WHERE backend = ?", self.backend.name)
            taken = {row["name"]: row["taken"] for row in rows}
            return tuple(
                StoragePool(name, total, total - taken.get(name, 0), self.options.capabilities)
                for name, total in self.options.pools.items()
            )

    def _call(
        self,
        name: str,
        thing: Share | Snapshot,
        context: RequestContext,
        server: ShareServer | None,
        *others: str,
    ) -> AbstractContextManager[Change]:
        related = (thing.project_id, *others)
        if server is not None:
            related = (*related, server.id, server.share_network_id or "")
        return self.world.call(
            name,
            thing.id,
            context,
            related=related,
            code=ErrorCode.STORAGE_FAILED,
            delay=self.options.delay_of(name),
        )

    def _create(
        self,
        change: Change,
        share: Share,
        server: ShareServer | None,
        *,
        origin: str,
        content: str,
        used: int,
    ) -> tuple[ExportLocation, ...]:
        address = self._address(change, share, server)
        wanted = {
            "backend": self.backend.name,
            "pool": share.pool,
            "project": share.project_id,
            "server": server.id if server else "",
            "protocol": share.share_proto,
            "size": share.size,
            "origin": origin,
        }
        found = change.one("SELECT * FROM shares WHERE id = ?", share.id)
        if found is None:
            self._take_capacity(change, share.pool, share.size)
            if server is not None:
                change.hand(server.security_services, server.id, share.id)
            change.write(
                "INSERT INTO shares (id, backend, pool, project, server, protocol, size, origin,"
                " used, content, generation, rules)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, -1, '[]')",
                share.id,
                *wanted.values(),
                used,
                content,
            )
        elif different := [name for name, value in wanted.items() if found[name] != value]:
            raise _refused(
                f"Share {share.id} exists already with another {', '.join(different)}.",
                ObjectKind.SHARE.ref(share.id),
            )
        return _locations(share, address)

    def _address(self, change: Change, share: Share, server: ShareServer | None) -> str:
        """Return the address of the share's server; refuse a server that does not serve."""
        if share.share_proto not in self.protocols:
            raise _refused(
                f"Share {share.id} asks for {share.share_proto}; there are NFS and CIFS.",
                ObjectKind.SHARE.ref(share.id),
            )
        if not self.backend.mode.has_share_servers:
            return SINGLE_SERVER_ADDRESS
        if server is None or server.details is None or not server.details.addresses:
            raise _refused(
                f"Share {share.id} has no share server with an address; the backend's mode needs "
                f"one.",
                ObjectKind.SHARE.ref(share.id),
            )
        if self.options.check_servers:
            known = change.one("SELECT serves_at FROM servers WHERE id = ?", server.id)
            if known is None or (known["serves_at"] or math.inf) > time.monotonic():
                raise _refused(
                    f"Share server {server.id} does not serve; share {share.id} cannot be made.",
                    ObjectKind.SHARE_SERVER.ref(server.id),
                )
        return server.details.addresses[0]

    def _existing(self, change: Change, share: Share) -> sqlite3.Row:
        found = change.one("SELECT * FROM shares WHERE id = ?", share.id)
        if found is None:
            raise _refused(f"Share {share.id} does not exist.", f"share {share.id}")
        return found

    def _take_capacity(self, change: Change, pool: str, gib: int) -> None:
        """Reserve GiB of a pool (a negative number frees them); refuse more than it has."""
        total = self.options.pools.get(pool, 0)
        if gib > 0 and not total:
            raise _refused(
                f"Storage pool {pool!r} does not exist.", ObjectKind.STORAGE_POOL.ref(pool)
            )
        row = change.one(
            "INSERT INTO pools (backend, name, taken) VALUES (?, ?, ?)"
            " ON CONFLICT DO UPDATE SET taken = taken + excluded.taken RETURNING taken",
            self.backend.name,
            pool,
            gib,
        )
        if row is not None and gib > 0 and row["taken"] > total:
            raise _refused(
                f"Storage pool {pool!r} of {total} GiB has no room for {gib} GiB more.",
                ObjectKind.STORAGE_POOL.ref(pool),
            )


def _locations(share: Share, address: str) -> tuple[ExportLocation, ...]:
    if share.share_proto == "CIFS":
        return (ExportLocation(f"\\\\{address}\\{share.id}"),)
    host = f"[{address}]" if ":" in address else address
    return (ExportLocation(f"{host}:/shares/{share.id}"),)


def _refused(sentence: str, about: str) -> Fatal:
    return Fatal(sentence, object=about, code=ErrorCode.STORAGE_FAILED)
