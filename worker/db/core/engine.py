"""Engines, transactions and the database's own clock.

An engine is opened after the fork and belongs to one process. Both drivers stay in autocommit
mode, and this module sends BEGIN: a statement that is a transaction by itself then costs one round
trip.
SQLite (the embedded default) runs in WAL mode with ``synchronous=FULL``, begins every transaction
with ``BEGIN IMMEDIATE`` (a read that turns into a write would otherwise fail with "database is
locked") and waits for its lock. The module for PostgreSQL is imported only where it is needed, so
that commands on SQLite do not spend time on importing psycopg.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Connection, Engine, Float, Table, create_engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, ExceptionContext, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from worker.db.core.outages import is_passing, is_server_unfit
from worker.errors import ConfigurationError

BUSY_TIMEOUT_SECONDS: Final = 30
_READ_ONLY: Final = """
SELECT current_user FROM pg_settings
WHERE name = 'default_transaction_read_only' AND setting = 'on'
    AND source IN ('user', 'database', 'database user')
"""


class db_now(FunctionElement[float]):  # noqa: N801 - it reads as the SQL function that it is
    """Seconds since the epoch on the database's clock, which all hosts share."""

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
        # Engines inherited from the parent share its sockets: drop them without closing.
        for inherited in [known for known in _engines if known[0] != key[0]]:
            del _engines[inherited]
        found = _engines[key] = open_engine(make_url(url))
    return found


def open_engine(url: URL, *, limited: bool = True) -> Engine:
    """Open a new engine; most callers want :func:`engine_for`.

    ``limited``: statements and idle transactions have a time limit; migrations turn it off.
    """
    if url.get_backend_name() == "sqlite":
        engine = create_engine(
            url, connect_args={"timeout": BUSY_TIMEOUT_SECONDS}, hide_parameters=True
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_immediate)
        return engine
    from worker.db.core.postgresql import PostgresConnection, connect  # noqa: PLC0415 - see above

    engine = create_engine(
        url,
        pool_size=3,
        max_overflow=2,
        pool_pre_ping=False,
        pool_use_lifo=True,  # reuse one warm server process; the others are for the heartbeat
        isolation_level="AUTOCOMMIT",
        use_native_hstore=False,  # no table has that type, so psycopg need not look it up
        hide_parameters=True,  # parameters may be secret: they appear in no log
    )

    @event.listens_for(engine, "do_connect")
    def _(_dialect: Any, _record: Any, arguments: Any, options: Any) -> PostgresConnection:
        return connect(arguments, options, limited=limited)

    event.listen(engine, "begin", _begin)
    event.listen(engine, "handle_error", _replace_unfit)
    return engine


def _replace_unfit(context: ExceptionContext) -> None:
    """Replace the pool's connections when an error shows that their server cannot serve."""
    if is_server_unfit(context.original_exception):
        context.is_disconnect = True


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # otherwise the driver sends a BEGIN of its own first
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
    from worker.db.core.postgresql import driver_connection, send  # noqa: PLC0415 - see above

    if not connection.get_execution_options().get("single"):
        send(connection, driver_connection(connection).begin)


def check_settings(url: str) -> None:
    """Refuse to start on a database whose settings make it unusable.

    Raises :class:`~worker.errors.ConfigurationError`. Does nothing when the database cannot be
    reached: the process waits for it later.
    """
    target = make_url(url)
    if target.get_backend_name() == "sqlite":
        return
    engine = open_engine(target)
    try:
        with engine.begin() as connection:
            role = connection.exec_driver_sql(_READ_ONLY).scalar()
    except DBAPIError as error:
        if "statement pooling" in str(error.orig):
            raise ConfigurationError(
                "The database's pooler is in statement pooling mode, which has no transactions; "
                "set its pool_mode to transaction or session."
            ) from error
        if not is_passing(error):
            raise
        return
    finally:
        engine.dispose()
    if role is not None:
        raise ConfigurationError(
            f"The database role {role} has default_transaction_read_only = on, so nothing can be "
            f"written; ALTER ROLE (or DATABASE) ... RESET default_transaction_read_only."
        )


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """Open a transaction; commit it at the end of the block, roll it back on an exception."""
    with engine.begin() as connection:
        yield connection


def wait_for_locks(connection: Connection, seconds: float) -> None:
    """Limit how many seconds this transaction waits for a locked row (PostgreSQL only)."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(seconds * 1000)}")


@contextmanager
def statement(engine: Engine) -> Iterator[Connection]:
    """Open a connection for one statement that is a transaction by itself.

    On PostgreSQL that costs one round trip instead of three. Behind a pooler a transaction is
    opened all the same, because the session's settings hold for one transaction only.
    """
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite" or _is_pooled(connection):
            with connection.begin():
                yield connection
        else:
            connection.execution_options(single=True)
            yield connection


def _is_pooled(connection: Connection) -> bool:
    from worker.db.core.postgresql import driver_connection  # noqa: PLC0415 - see above

    return driver_connection(connection).is_pooled


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Open a connection that only reads.

    On SQLite all its statements see one snapshot and wait for no writer; on PostgreSQL each
    statement sees what is committed when it starts, as in any transaction at READ COMMITTED.
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
"""Constructors of INSERT with an ON CONFLICT clause, by the dialect's name."""


def insert_into(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """Return an INSERT that takes an ON CONFLICT clause, in the connection's dialect."""
    return INSERTS[connection.dialect.name](table)
