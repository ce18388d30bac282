"""Connections to PostgreSQL with time limits and with settings of their own.

A role, a database or a server may have any default. The settings that the engine relies on are
therefore made after connecting, in one statement. They are not sent as startup parameters, which
PgBouncer refuses and which would replace the ``options`` of the URL. A pooler may give each
transaction another server process; behind one, the settings are made at the beginning of each
transaction, and no statement is prepared.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.rows import namedtuple_row
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from worker.db.core.outages import is_server_unfit

IDLE_TRANSACTION_SECONDS: Final = 10
"""The server ends a transaction that is idle for longer, as when its process hangs."""
STATEMENT_SECONDS: Final = 10
"""The server cancels a statement that takes longer; usual ones take milliseconds."""
SILENCE_SECONDS: Final = 12
"""The client closes a connection when a statement's answer takes longer.

It is longer than the server's own limit, so a working server has answered by then. TCP alone does
not detect a lost server: a proxy on the way may acknowledge packets that it never delivers.
"""
_CONNECT_ARGUMENTS: Final[Mapping[str, Any]] = {
    "connect_timeout": 10,
    "tcp_user_timeout": 10_000,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "client_encoding": "utf8",
}
"""Defaults for the URL: the loss of the host is noticed within about ten seconds."""
_CURSOR = "sharewright.cursor"
_TRANSACTION_TIMEOUT_SINCE: Final = 170000
Answer = TypeVar("Answer")


class PostgresConnection(psycopg.Connection[Any]):
    """Connection that fails when the server does not answer for :data:`SILENCE_SECONDS`.

    ``is_pooled``: there is a pooler between this process and the server. ``begin`` is the SQL that
    starts a transaction.
    """

    is_pooled: bool = False
    begin: str = "BEGIN"
    is_limited: bool = True

    def wait(self, gen: PQGen[Answer], *args: Any, **options: Any) -> Answer:
        """Wait for the server's answer as psycopg does, with a time limit."""
        return super().wait(self._bounded(gen) if self.is_limited else gen, *args, **options)

    def _bounded(self, gen: PQGen[Answer]) -> PQGen[Answer]:
        deadline = time.monotonic() + SILENCE_SECONDS
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > deadline:
                    self.pgconn.finish()
                    raise psycopg.OperationalError(
                        f"The server has not answered for {SILENCE_SECONDS} s."
                    )
                wanted = gen.send(ready)
        except StopIteration as end:
            answer: Answer = end.value
            return answer


def connect(
    arguments: tuple[Any, ...], options: Mapping[str, Any], *, limited: bool
) -> PostgresConnection:
    """Connect and apply the session's settings, time limits only if ``limited``."""
    given = {**_CONNECT_ARGUMENTS, **options}
    connection = PostgresConnection.connect(*arguments, autocommit=True, **given)
    try:
        # A pooler tells its clients a process number of its own making.
        (process,) = connection.execute("SELECT pg_backend_pid()").fetchone() or (None,)
        connection.is_pooled = process != connection.info.backend_pid
        connection.is_limited = limited
        settings = _settings(connection.info.server_version, limited=limited)
        if connection.is_pooled:
            connection.prepare_threshold = None
            setting = _setting(settings, local=True)
            connection.begin = f"BEGIN ISOLATION LEVEL READ COMMITTED; {setting}"
        else:
            connection.execute(_setting(settings, local=False).encode())
    except BaseException:
        connection.close()
        raise
    return connection


def _settings(server_version: int, *, limited: bool) -> dict[str, str]:
    """Return the settings of every session, as SQL expressions by name."""
    settings = {
        "statement_timeout": f"'{STATEMENT_SECONDS if limited else 0}s'",
        "lock_timeout": "'0'",
        "idle_in_transaction_session_timeout": f"'{IDLE_TRANSACTION_SECONDS}s'",
        "default_transaction_isolation": "'read committed'",
        # A committed transaction must survive a crash of the server; only "off" breaks that.
        "synchronous_commit": "CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' "
        "ELSE current_setting('synchronous_commit') END",
    }
    if server_version >= _TRANSACTION_TIMEOUT_SINCE:
        settings["transaction_timeout"] = "'0'"
    return settings


def _setting(settings: Mapping[str, str], *, local: bool) -> str:
    calls = [f"set_config('{name}', {value}, {local})" for name, value in settings.items()]
    return f"SELECT {', '.join(calls)}"


def driver_connection(connection: Connection) -> PostgresConnection:
    """Return the driver's connection behind one of SQLAlchemy's."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, PostgresConnection), "opened by worker.db.core.engine"
    return driver


def send(
    connection: Connection, text: str, values: Mapping[str, Any] | None = None
) -> psycopg.Cursor[Any]:
    """Send a statement past SQLAlchemy, over the same connection and in its transaction.

    Raises SQLAlchemy's own errors.
    """
    kept = connection.info
    cursor: psycopg.Cursor[Any] | None = kept.get(_CURSOR)
    driver = driver_connection(connection)
    if cursor is None:
        cursor = kept[_CURSOR] = driver.cursor(row_factory=namedtuple_row)
    try:
        return cursor.execute(text, values)
    except psycopg.Error as error:
        gone = driver.closed or driver.broken or is_server_unfit(error)
        if gone:
            connection.invalidate(error)
            # The pool's other connections lead to the same server.
            connection.engine.dispose()
        raise DBAPIError.instance(
            text,
            None,  # parameters may be secret: they appear in no log
            error,
            psycopg.Error,
            connection_invalidated=gone,
            dialect=connection.dialect,
        ) from error
