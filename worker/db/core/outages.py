"""Tell outages of the database from defects, and retry transactions during an outage.

An outage is any error that the statement did not cause: the same statement succeeds when it is
sent again later, or to the server that has taken over.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as NoConnectionLeft
from tenacity import (
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    stop_all,
    wait_random,
    wait_random_exponential,
)

RECONNECT_SECONDS: Final = 5.0

_SERVER_UNFIT: Final = (
    "08",  # the connection failed
    "25006",  # a standby, or a primary that was made read-only, takes no writes
    "25P03",  # the server ended a session that was idle in a transaction
    "25P04",  # ... or in a transaction for too long
    "53",  # disk full, out of memory, too many connections
    "57P",  # shutting down, starting up, crashed, database dropped, idle for too long
    "58",  # the server's own files cannot be read or written
    "XX001",  # damaged data or index on this server; its standby may be sound.
    "XX002",
)
"""SQLSTATEs (by prefix) after which the connection is replaced: another server may do better.

XX000, "internal error", is not one of them: a statement of ours may cause it every time.
"""
_RACE_LOST: Final = (
    "40",  # deadlock, serialization failure: rolled back so that another transaction could go on
    "55006",  # the object is in use
    "55P03",  # a lock was not obtained in time
    "57014",  # the statement took too long, or somebody cancelled it
)
"""SQLSTATEs after which the same connection may try again."""
_SQLITE_OUTAGES: Final = {
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL),
    *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR),  # space may be freed on a full disk
    *(sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN),  # remounted read-only, or not mounted
}


def is_server_unfit(error: BaseException | None) -> bool:
    """Tell whether PostgreSQL's error asks for a new connection."""
    state = getattr(error, "sqlstate", None)
    return state is not None and state.startswith(_SERVER_UNFIT)


def is_passing(error: BaseException) -> bool:
    """Tell whether a database error is an outage or a lost race rather than a defect."""
    if isinstance(error, NoConnectionLeft):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated or is_server_unfit(error.orig):
        return True
    if isinstance(error.orig, sqlite3.OperationalError):
        return error.orig.sqlite_errorcode & 0xFF in _SQLITE_OUTAGES
    state = getattr(error.orig, "sqlstate", None)
    if state is not None:
        return str(state).startswith(_RACE_LOST)
    # psycopg reports a server that cannot be reached as an OperationalError without a SQLSTATE.
    import psycopg  # noqa: PLC0415 - SQLite does without it

    return isinstance(error.orig, psycopg.OperationalError)


def patiently(seconds: float = RECONNECT_SECONDS) -> Retrying:
    """Return tenacity's loop that retries a whole transaction for ``seconds``.

    It retries after outages and lost races. A second attempt is made even if the first one took
    longer than ``seconds``: it may have waited for a server that no longer answered.
    """
    return Retrying(
        retry=retry_if_exception(is_passing),
        stop=stop_all(stop_after_delay(seconds), stop_after_attempt(2)),
        wait=wait_random_exponential(multiplier=0.05, max=1.0),
        reraise=True,
    )


def racing(seconds: float = RECONNECT_SECONDS) -> Retrying:
    """Return a loop as :func:`patiently`, which also retries after a unique constraint failed."""
    return Retrying(
        retry=retry_if_exception(lambda e: isinstance(e, IntegrityError) or is_passing(e)),
        stop=stop_all(stop_after_delay(seconds), stop_after_attempt(2)),
        wait=wait_random(0.01, 0.1),
        reraise=True,
    )
