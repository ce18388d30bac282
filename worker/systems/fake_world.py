"""The fake world: the external system of the fake plug-ins, with a log of every call.

It is a separate small SQLite file, so that many worker processes share one world and a test can
read it while they work. The engine never reads it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Final, Protocol

from pydantic import Field

from worker.errors import (
    ErrorCode,
    Fatal,
    NotReady,
    Retryable,
    StepError,
)
from worker.failpoints import failpoint
from worker.model import (
    RequestContext,
    SecurityService,
)
from worker.plugin import BackendContext, Options

BUSY_TIMEOUT_SECONDS: Final = 60.0
HANG_SECONDS: Final = 3600.0
_VERSION: Final = 2

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS calls (
    id INTEGER PRIMARY KEY, name TEXT, object_id TEXT, operation_id TEXT,
    started REAL, finished REAL, outcome TEXT, effect INTEGER, message TEXT, pid INTEGER);
CREATE TABLE IF NOT EXISTS faults (
    id INTEGER PRIMARY KEY, call TEXT, kind TEXT, match TEXT, remaining INTEGER, seconds REAL);
CREATE TABLE IF NOT EXISTS networks (
    domain TEXT PRIMARY KEY, number INTEGER UNIQUE, cidr TEXT, segmentation_id INTEGER UNIQUE);
CREATE TABLE IF NOT EXISTS ports (
    id TEXT PRIMARY KEY, domain TEXT, address TEXT, number TEXT, mac TEXT, server TEXT,
    ordinal INTEGER, UNIQUE (domain, address), UNIQUE (domain, server, ordinal));
CREATE INDEX IF NOT EXISTS ports_server ON ports (server);
CREATE TABLE IF NOT EXISTS servers (
    id TEXT PRIMARY KEY, name TEXT UNIQUE, backend TEXT, project TEXT, network TEXT, domain TEXT,
    created REAL, serves_at REAL);
CREATE TABLE IF NOT EXISTS server_addresses (
    domain TEXT, address TEXT, server TEXT, PRIMARY KEY (domain, address));
CREATE INDEX IF NOT EXISTS server_addresses_server ON server_addresses (server);
CREATE TABLE IF NOT EXISTS shares (
    id TEXT PRIMARY KEY, backend TEXT, pool TEXT, project TEXT, server TEXT, protocol TEXT,
    size INTEGER, used INTEGER, content TEXT, origin TEXT, generation INTEGER, rules TEXT,
    exported INTEGER DEFAULT 1);
CREATE INDEX IF NOT EXISTS shares_server ON shares (server);
CREATE TABLE IF NOT EXISTS pools (
    backend TEXT, name TEXT, taken INTEGER, PRIMARY KEY (backend, name));
CREATE TABLE IF NOT EXISTS security (
    share TEXT, server TEXT, digest TEXT, PRIMARY KEY (share, server));
CREATE TABLE IF NOT EXISTS copies (share TEXT PRIMARY KEY, done_at REAL);
CREATE TABLE IF NOT EXISTS snapshots (
    id TEXT PRIMARY KEY, share TEXT, size INTEGER, used INTEGER, content TEXT);
"""


def digest_of(services: Sequence[SecurityService], server_id: str) -> str:
    """Tell whether security services, passwords included, are those that a test expects."""
    handed = [asdict(service) for service in sorted(services, key=lambda one: one.id)]
    return hashlib.sha256(json.dumps([server_id, handed]).encode()).hexdigest()


class FaultKind(StrEnum):
    """Effect of an armed fault on the next matching call."""

    FATAL = "fatal"
    """Raises Fatal before anything is changed."""
    RETRYABLE = "retryable"
    """Raises Retryable before anything is changed."""
    NOT_READY = "not_ready"
    """Raises NotReady before anything is changed."""
    FATAL_AFTER_EFFECT = "fatal_after_effect"
    """Does the work, then raises Fatal: got half-way."""
    RETRYABLE_AFTER_EFFECT = "retryable_after_effect"
    """Does the work, then raises Retryable: the answer was lost."""
    HANG = "hang"
    """Does not answer for a while, then asks the guard and goes on."""


@dataclass(frozen=True, slots=True)
class LoggedCall:
    """One line of the log; times are seconds since the epoch on this host's clock.

    ``outcome`` is ``ok``, the name of the error's class, or empty while the call runs (or when
    its worker died in it); ``effect`` says whether the world was changed.
    """

    id: int
    name: str
    object_id: str
    operation_id: str
    started: float
    finished: float | None
    outcome: str
    effect: bool
    message: str
    pid: int


@dataclass(slots=True)
class Change:
    """A call that is being served: its transaction, and whether it changed anything."""

    db: sqlite3.Connection
    effect: bool = False
    exists: str | None = None
    """The external id of the share server that exists, for an error's ``share_server_id``."""
    then: NotReady | None = None
    """Raised once the changes are committed."""

    def one(self, statement: str, *values: Any) -> sqlite3.Row | None:
        """Return the first row of a query, or None."""
        row: sqlite3.Row | None = self.db.execute(statement, values).fetchone()
        return row

    def all(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        """Return all rows of a query."""
        return self.db.execute(statement, values).fetchall()

    def hand(self, services: Sequence[SecurityService], server_id: str, share_id: str = "") -> None:
        """Note with which security services a server is built, or a share is made on it."""
        if services:
            self.write(
                "INSERT OR REPLACE INTO security (share, server, digest) VALUES (?, ?, ?)",
                share_id,
                server_id,
                digest_of(services, server_id),
            )

    def write(self, statement: str, *values: Any) -> int:
        """Change the world; return how many rows changed."""
        changed = self.db.execute(statement, values).rowcount
        self.effect = self.effect or changed > 0
        return changed


class World:
    """A fake world in a file; connections are opened lazily, one per process and thread."""

    def __init__(self, path: Path | str, *, log_calls: bool = True) -> None:
        self.path = Path(path)
        self._log_calls = log_calls
        self._local = threading.local()

    @contextmanager
    def call(
        self,
        name: str,
        object_id: str,
        context: RequestContext,
        *,
        related: tuple[str | None, ...] = (),
        code: ErrorCode,
        delay: float = 0.0,
    ) -> Iterator[Change]:
        """Serve one call in one transaction: faults, delay, guard, the work, and its log line.

        ``related`` are other ids that a fault may be armed for. Raises what an armed fault says;
        what the work raises undoes its changes and is logged.
        """
        started = time.time()
        failpoint(f"{name}.outside")
        if not delay:
            context.guard()
        db = self._connection()
        db.execute("BEGIN IMMEDIATE")
        line = _Line(self._log_calls, name, object_id, context.operation_id, started)
        change = Change(db)
        armed: StepError | NotReady | None = None
        try:
            fault = _take_fault(db, name, (object_id, *(other for other in related if other)))
            hang = fault["seconds"] if fault and fault["kind"] == FaultKind.HANG else 0.0
            if delay + hang:
                _pause(db, line, delay + hang)
                context.guard()
                db.execute("BEGIN IMMEDIATE")
            armed = _error(fault, code, before=True)
            if armed:
                raise armed
            yield change
            armed = _error(fault, code, before=False) or change.then
            if armed:
                armed.share_server_id = change.exists
                raise armed
        except BaseException as error:
            if error is not armed:
                change.effect = False
                if db.in_transaction:
                    db.execute("ROLLBACK")
            if not db.in_transaction:
                db.execute("BEGIN IMMEDIATE")
            line.end(db, change, type(error).__name__, str(error))
            db.execute("COMMIT")
            raise
        line.end(db, change, "ok", "")
        db.execute("COMMIT")

    def arm(
        self,
        call: str,
        kind: FaultKind | str,
        *,
        times: int = 1,
        match: str = "",
        seconds: float | None = None,
    ) -> None:
        """Make the next ``times`` calls of that name go wrong; each is used up by one call.

        ``match`` is an object's, share server's, share network's or project's id; empty: any.
        ``seconds`` is how long a hang lasts, or when ``not_ready`` is worth another look.
        """
        chosen = FaultKind(kind)
        if seconds is None:
            seconds = HANG_SECONDS if chosen is FaultKind.HANG else 0.2
        self._write(
            "INSERT INTO faults (call, kind, match, remaining, seconds) VALUES (?, ?, ?, ?, ?)",
            (call, str(chosen), match, times, seconds),
        )

    def disarm(self) -> None:
        """Forget all armed faults."""
        self._write("DELETE FROM faults", ())

    def calls(self, name: str | None = None, *, effect: bool | None = None) -> list[LoggedCall]:
        """Return the log, oldest first; ``effect=True``: only what changed the world."""
        rows = self._read(
            "SELECT * FROM calls WHERE name = coalesce(?, name) AND effect = coalesce(?, effect)"
            " ORDER BY id",
            (name, effect),
        )
        return [LoggedCall(**{**row, "effect": bool(row["effect"])}) for row in rows]

    def servers(self) -> list[dict[str, Any]]:
        """Return the share servers that exist."""
        return self._read("SELECT * FROM servers ORDER BY id", ())

    def ports(self) -> list[dict[str, Any]]:
        """Return the addresses that the network helper holds for servers."""
        return self._read("SELECT * FROM ports ORDER BY domain, number", ())

    def networks(self) -> list[dict[str, Any]]:
        """Return the networks that exist."""
        return self._read("SELECT * FROM networks ORDER BY domain", ())

    def shares(self) -> list[dict[str, Any]]:
        """Return the shares that exist; ``rules`` are (address or CIDR, level) pairs."""
        rows = self._read("SELECT * FROM shares ORDER BY id", ())
        return [
            {**row, "rules": [tuple(rule) for rule in json.loads(row["rules"])]} for row in rows
        ]

    def snapshots(self) -> list[dict[str, Any]]:
        """Return the snapshots that exist."""
        return self._read("SELECT * FROM snapshots ORDER BY id", ())

    def security(self) -> list[dict[str, Any]]:
        """Return which security services share servers were built with (``share`` is empty then).

        And which ones the driver was handed with a share's server, each as the digest of
        :func:`digest_of`; without security services there is no row.
        """
        return self._read("SELECT * FROM security ORDER BY server, share", ())

    def read(self, share_id: str, client: str) -> str:
        """Return a share's content as a client at an address sees it.

        Raises :class:`PermissionError` without a rule, :class:`FileNotFoundError` without a share.
        """
        return str(self._opened(share_id, client)[0]["content"])

    def write(self, share_id: str, client: str, content: str, *, used_gib: int = 0) -> None:
        """Replace a share's content as a client at an address would.

        Raises as :meth:`read`, and :class:`OSError` with ``EROFS`` for a read-only client or
        ``EDQUOT`` when ``used_gib`` is more than the share's size.
        """
        share, level = self._opened(share_id, client)
        if level != "rw":
            raise OSError(errno.EROFS, f"Client {client} may only read share {share_id}.")
        if used_gib > share["size"]:
            raise OSError(errno.EDQUOT, f"Share {share_id} holds only {share['size']} GiB.")
        self._write(
            "UPDATE shares SET content = ?, used = ? WHERE id = ?", (content, used_gib, share_id)
        )

    def stop_server(self, server_id: str) -> None:
        """Stop a share server's file server."""
        self._write("UPDATE servers SET serves_at = NULL WHERE id = ?", (server_id,))

    def lose_server(self, server_id: str) -> None:
        """Remove a share server with all its exports, as a reboot of its host does."""
        self._write("DELETE FROM servers WHERE id = ?", (server_id,))
        self._write("DELETE FROM server_addresses WHERE server = ?", (server_id,))
        self.lose_exports(server_id)

    def lose_exports(self, server_id: str = "") -> None:
        """Remove all exports of a share server (empty: of the predefined one)."""
        self._write("UPDATE shares SET exported = 0 WHERE server = ?", (server_id,))

    def lose_share(self, share_id: str) -> None:
        """Delete a share's data."""
        self._write("DELETE FROM shares WHERE id = ?", (share_id,))

    def _opened(self, share_id: str, client: str) -> tuple[dict[str, Any], str]:
        rows = self._read("SELECT * FROM shares WHERE id = ?", (share_id,))
        if not rows or not rows[0]["exported"]:
            raise FileNotFoundError(errno.ENOENT, f"There is no share {share_id}.")
        address = ip_address(client)
        nets = [(ip_network(to, strict=False), level) for to, level in json.loads(rows[0]["rules"])]
        levels = [
            (net.prefixlen, level)
            for net, level in nets
            if net.version == address.version and address in net
        ]
        if not levels:
            raise PermissionError(errno.EACCES, f"Client {client} has no access to {share_id}.")
        # As ganesha's sorted CLIENT blocks: the most specific rule decides.
        return rows[0], max(levels)[1]

    def _read(self, statement: str, values: tuple[Any, ...]) -> list[dict[str, Any]]:
        return [dict(row) for row in self._connection().execute(statement, values)]

    def _write(self, statement: str, values: tuple[Any, ...]) -> None:
        self._connection().execute(statement, values)

    def _connection(self) -> sqlite3.Connection:
        # A connection must not cross a fork; the child opens its own.
        if getattr(self._local, "pid", None) != os.getpid():
            self._local.connection = _open(self.path)
            self._local.pid = os.getpid()
        connection: sqlite3.Connection = self._local.connection
        return connection


@dataclass(slots=True)
class _Line:
    """A call's line in the log, while it is being written."""

    wanted: bool
    name: str
    object_id: str
    operation_id: str
    started: float
    id: int | None = None

    def begin(self, db: sqlite3.Connection) -> None:
        if not self.wanted:
            return
        self.id = db.execute(
            "INSERT INTO calls (name, object_id, operation_id, started, outcome, effect, message,"
            " pid) VALUES (?, ?, ?, ?, '', 0, '', ?)",
            (self.name, self.object_id, self.operation_id, self.started, os.getpid()),
        ).lastrowid

    def end(self, db: sqlite3.Connection, change: Change, outcome: str, message: str) -> None:
        if self.id is None:
            self.begin(db)
        db.execute(
            "UPDATE calls SET finished = ?, outcome = ?, effect = ?, message = ? WHERE id = ?",
            (time.time(), outcome, int(change.effect), message, self.id),
        )


def _take_fault(db: sqlite3.Connection, name: str, ids: tuple[str, ...]) -> sqlite3.Row | None:
    fault: sqlite3.Row
    for fault in db.execute("SELECT * FROM faults WHERE call = ? ORDER BY id", (name,)).fetchall():
        if not fault["match"] or fault["match"] in ids:
            if fault["remaining"] > 1:
                db.execute(
                    "UPDATE faults SET remaining = remaining - 1 WHERE id = ?", (fault["id"],)
                )
            else:
                db.execute("DELETE FROM faults WHERE id = ?", (fault["id"],))
            return fault
    return None


def _pause(db: sqlite3.Connection, line: _Line, seconds: float) -> None:
    """Let others work meanwhile; a worker that dies in here leaves a line without an outcome."""
    line.begin(db)
    db.execute("COMMIT")
    time.sleep(seconds)


def _error(
    fault: sqlite3.Row | None, code: ErrorCode, *, before: bool
) -> StepError | NotReady | None:
    if fault is None:
        return None
    sentence = f"The fake world was told to let {fault['call']} end as {fault['kind']}."
    match FaultKind(fault["kind"]), before:
        case (FaultKind.FATAL, True) | (FaultKind.FATAL_AFTER_EFFECT, False):
            return Fatal(sentence, code=code)
        case (FaultKind.RETRYABLE, True) | (FaultKind.RETRYABLE_AFTER_EFFECT, False):
            return Retryable(sentence)
        case (FaultKind.NOT_READY, True):
            return NotReady(sentence, retry_after=fault["seconds"])
        case _:
            return None


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None)
    connection.row_factory = sqlite3.Row
    # A test double need not survive a power cut.
    connection.execute("PRAGMA synchronous = OFF")
    # SQLite does not wait while another process changes the journal mode: it fails at once.
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if connection.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(
                f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;"
            )
    return connection


class FakeOptions(Options):
    """Options that all three fakes have."""

    world: Path | None = Field(
        None,
        description="The SQLite file that holds the fakes' world; without it `world.db` "
        "in the backend's state directory.",
    )
    delay: float | dict[str, float] = Field(
        0.0, description="Seconds that each call takes, or a table of call names and seconds."
    )
    log_calls: bool = Field(True, description="Whether every call is logged in the world.")

    def world_of(self, backend: BackendContext) -> World:
        """Return the world that the options name."""
        return World(self.world or backend.state_dir / "world.db", log_calls=self.log_calls)

    def delay_of(self, call: str) -> float:
        """Return the seconds that a call of that name takes."""
        return self.delay.get(call, 0.0) if isinstance(self.delay, dict) else self.delay


class Fake(Protocol):
    """Base class of the fake driver and helpers, with their world and backend."""

    world: World
    backend: BackendContext
