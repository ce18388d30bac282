"""Engines, transactions and the database's own clock.

An engine is opened after the fork and belongs to one process. Both drivers are left in autocommit
mode, and BEGIN is said here: a statement that is a transaction by itself then costs one round trip.
SQLite (the embedded default) runs in WAL mode with ``synchronous=FULL``, begins every transaction
with ``BEGIN IMMEDIATE`` (a read that turns into a write would otherwise fail with "database is
locked") and waits for its lock.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Connection, Engine, Float, Table, create_engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from tenacity import (
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_random,
    wait_random_exponential,
)

from worker.db.core.prepared import send

BUSY_TIMEOUT_SECONDS: Final = 30
RECONNECT_SECONDS: Final = 5.0
_PASSING_IN_SQLITE: Final = {
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED),
    *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR),  # a full disk may be given room again
}
IDLE_TRANSACTION_SECONDS: Final = 10
"""A process that is stopped in a transaction holds its rows no longer than this (PostgreSQL)."""


class db_now(FunctionElement[float]):  # noqa: N801 - it reads as the SQL function that it is
    """Seconds since the epoch on the database's clock, so that hosts' clocks do not matter."""

    type = Float()
    inherit_cache = True


@compiles(db_now, "postgresql")
def _now_postgresql(_element: Any, _compiler: Any, **_options: Any) -> str:
    # clock_timestamp moves within a transaction, unlike now(): a lease must not begin in the past.
    return "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"


@compiles(db_now, "sqlite")
def _now_sqlite(_element: Any, _compiler: Any, **_options: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


_engines: dict[tuple[int, str], Engine] = {}


def engine_for(url: str) -> Engine:
    """Return this process's engine for a database, opening it on first use after a fork."""
    key = (os.getpid(), url)
    found = _engines.get(key)
    if found is None:
        # Engines inherited over a fork share sockets with the parent: forget, never dispose.
        for inherited in [known for known in _engines if known[0] != key[0]]:
            del _engines[inherited]
        found = _engines[key] = open_engine(make_url(url))
    return found


def open_engine(url: URL) -> Engine:
    """Open a new engine; most callers want :func:`engine_for`."""
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_SECONDS})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_immediate)
        return engine
    engine = create_engine(
        url,
        pool_size=3,
        max_overflow=2,
        pool_pre_ping=False,
        pool_use_lifo=True,  # one server process is kept warm, the others are for the keeper
        isolation_level="AUTOCOMMIT",
        connect_args={
            "connect_timeout": 10,
            "options": f"-c idle_in_transaction_session_timeout={IDLE_TRANSACTION_SECONDS}s",
        },
    )
    event.listen(engine, "begin", _begin)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # the driver's own BEGIN would come first otherwise
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_immediate(connection: Connection) -> None:
    if connection.get_execution_options().get("read_only"):
        connection.exec_driver_sql("BEGIN")
    else:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _begin(connection: Connection) -> None:
    if not connection.get_execution_options().get("single"):
        send(connection, "BEGIN")


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """One transaction: committed at the end, rolled back by an exception."""
    with engine.begin() as connection:
        yield connection


def wait_for_locks(connection: Connection, seconds: float) -> None:
    """Let this transaction fail when a row that it wants is another's for longer (PostgreSQL)."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(seconds * 1000)}")


@contextmanager
def statement(engine: Engine) -> Iterator[Connection]:
    """One statement that is a transaction by itself: PostgreSQL is asked once, not three times."""
    if engine.dialect.name == "sqlite":
        with engine.begin() as connection:
            yield connection
    else:
        with engine.connect().execution_options(single=True) as connection:
            yield connection


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A look that changes nothing.

    On SQLite it sees one state and does not wait for writers; on PostgreSQL each of its
    statements sees what is committed by then, as in any transaction at READ COMMITTED.
    """
    if engine.dialect.name == "sqlite":
        with engine.connect().execution_options(read_only=True) as connection, connection.begin():
            yield connection
    else:
        with statement(engine) as connection:
            yield connection


INSERTS: Final[Mapping[str, Callable[[Table], postgresql.Insert | sqlite.Insert]]] = {
    "postgresql": postgresql.insert,
    "sqlite": sqlite.insert,
}
"""Inserts that can say what happens on a conflict, in each database's own dialect."""


def insert_into(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """An insert that can say what happens on a conflict, in the connection's dialect."""
    return INSERTS[connection.dialect.name](table)


def is_passing(error: BaseException) -> bool:
    """Whether a database error is an outage or a lost race rather than a defect."""
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    # 40001 serialization failure, 40P01 deadlock, 57P0x shutdown, 08xxx connection, 53300 too many,
    # 25P03 was stopped in a transaction.
    state = getattr(error.orig, "sqlstate", None)
    if state is not None:
        return str(state)[:2] in {"08", "40"} or str(state)[:3] in {"57P", "533", "25P"}
    if isinstance(error.orig, sqlite3.OperationalError):
        return error.orig.sqlite_errorcode & 0xFF in _PASSING_IN_SQLITE
    # psycopg reports a server that is gone as an OperationalError without a state.
    return type(error.orig).__name__ == "OperationalError"


def patiently(seconds: float = RECONNECT_SECONDS) -> Retrying:
    """Tenacity's loop around one whole transaction, for outages of seconds."""
    return Retrying(
        retry=retry_if_exception(is_passing),
        stop=stop_after_delay(seconds),
        wait=wait_random_exponential(multiplier=0.05, max=1.0),
        reraise=True,
    )


def racing(seconds: float = RECONNECT_SECONDS) -> Retrying:
    """As :func:`patiently`, and for races too: what loses to a unique constraint looks again."""
    return Retrying(
        retry=retry_if_exception(lambda e: isinstance(e, IntegrityError) or is_passing(e)),
        stop=stop_after_delay(seconds),
        wait=wait_random(0.01, 0.1),
        reraise=True,
    )
