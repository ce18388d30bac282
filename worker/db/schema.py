"""The schema of the database: upgrading it, and checking that it is up to date.

One upgrade runs at a time, however many are started: the second waits for the first one's lock
(PostgreSQL's advisory lock, SQLite's only writer) and then has nothing to do.
"""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnectionLeft

from worker.db.core.engine import BUSY_TIMEOUT_SECONDS, open_engine, reading, transaction
from worker.db.core.outages import is_passing, patiently
from worker.db.tables.all import metadata
from worker.errors import ConfigurationError

AWAIT_SECONDS: Final = 2.0
"""Seconds between attempts to reach the database when a process starts."""
VERSION_TABLE: Final = "alembic_version"
_MIGRATIONS: Final = Path(__file__).parent / "migrations"
_LOCK_NUMBER: Final = 0x5368_6172_6577  # used by no other advisory lock in the database
_SCRATCH: Final = "sharewright_check"
_log = logging.getLogger(__name__)


def _alembic() -> AlembicConfig:
    config = AlembicConfig()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.set_main_option("path_separator", "os")
    return config


def head() -> str:
    """Return the newest revision that this version knows."""
    found = ScriptDirectory.from_config(_alembic()).get_current_head()
    assert found is not None, "the migrations are part of the package"
    return found


def revision(connection: Connection) -> str | None:
    """Return the revision that a database is at; None before the first upgrade."""
    return MigrationContext.configure(connection).get_current_revision()


def require_revision(url: str) -> None:
    """Wait for the database, and check that this version can work with its revision.

    An unknown revision belongs to a later version and is accepted: later migrations only add to
    the schema, so that versions can run side by side. Raises
    :class:`~worker.errors.ConfigurationError` when the database must be upgraded first.
    """
    engine = open_engine(make_url(url))
    try:
        found = _await_revision(engine)
    finally:
        engine.dispose()
    needed = head()
    if found == needed:
        return
    known = {script.revision for script in ScriptDirectory.from_config(_alembic()).walk_revisions()}
    if found is None or found in known:
        raise ConfigurationError(
            f"The database is at revision {found or 'none'} and this version needs {needed}; "
            f"run `sharewright db upgrade` and start again.",
        )
    _log.warning(
        "The database is at revision %s, of a later version; this one goes up to %s.", found, needed
    )


def _await_revision(engine: Engine) -> str | None:
    while True:
        try:
            with reading(engine) as connection:
                return revision(connection)
        except (DBAPIError, NoConnectionLeft) as error:
            if not is_passing(error):
                raise
            _log.warning(
                "The database cannot be reached (%s); trying again in %g s.",
                str(error).splitlines()[0],
                AWAIT_SECONDS,
            )
            time.sleep(AWAIT_SECONDS)


def upgrade(url: str) -> str:
    """Upgrade a database to this version's schema; return its revision.

    It may be run when nothing is to be done, and several times at once. Raises
    ``sqlalchemy.exc.DBAPIError`` when the database cannot be reached.
    """
    target = make_url(url)
    if target.get_backend_name() == "sqlite" and target.database:
        file = Path(target.database)
        file.parent.mkdir(parents=True, exist_ok=True)
        # Only the owner may read a new file; SQLite gives the files beside it the same mode.
        file.touch(mode=0o600)
    engine = open_engine(target, limited=False)
    try:
        # Of two processes that create a SQLite file at once, one may get "locked" without waiting.
        for attempt in patiently(BUSY_TIMEOUT_SECONDS):
            with attempt:
                _upgrade(engine)
    finally:
        engine.dispose()
    return head()


def _upgrade(engine: Engine) -> None:
    with transaction(engine) as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": _LOCK_NUMBER})
        config = _alembic()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def check(engine: Engine) -> list[str]:
    """Return the differences between a database and ``worker/db/tables``, one line each.

    Both are compared as the database itself describes them, so partial indexes, checks and
    defaults count. Changes nothing.
    """
    with engine.connect() as connection, connection.begin() as scratch:
        if connection.dialect.name == "postgresql":
            schema = connection.execute(text("SELECT current_schema()")).scalar_one()
            found = _postgresql_definitions(connection, schema)
            connection.execute(text(f"CREATE SCHEMA {_SCRATCH}"))
            connection.execute(text(f"SET LOCAL search_path TO {_SCRATCH}"))
            metadata.create_all(connection)
            wanted = _postgresql_definitions(connection, _SCRATCH)
        else:
            found = _sqlite_definitions(connection)
            wanted = _wanted_by_sqlite()
        scratch.rollback()
    return [f"missing: {line}" for line in sorted(wanted - found)] + [
        f"not in the models: {line}" for line in sorted(found - wanted)
    ]


def check_migrations() -> list[str]:
    """Return the differences between the migrations and the models, using a temporary database."""
    engine = open_engine(make_url("sqlite://"))
    try:
        _upgrade(engine)
        return check(engine)
    finally:
        engine.dispose()


def _wanted_by_sqlite() -> set[str]:
    engine = open_engine(make_url("sqlite://"))
    try:
        with engine.begin() as connection:
            metadata.create_all(connection)
            return _sqlite_definitions(connection)
    finally:
        engine.dispose()


_OUTER_COMMA: Final = re.compile(r",(?![^(]*\))")


def _sqlite_definitions(connection: Connection) -> set[str]:
    rows = connection.execute(
        text("SELECT tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL AND tbl_name <> :own"),
        {"own": VERSION_TABLE},
    )
    # SQLAlchemy writes each column and constraint on a line of its own; SQLite appends columns
    # added later to the last line.
    return {
        f"{table}: {' '.join(part.split())}"
        for table, definition in rows
        if not table.startswith("sqlite_")
        for line in definition.splitlines()
        for part in _OUTER_COMMA.split(line)
        if part.strip() not in {"", ")"}
    }


_COLUMNS: Final = """
SELECT table_name, concat_ws(' ', column_name, data_type, character_maximum_length,
    'nullable ' || is_nullable, 'default ' || column_default)
FROM information_schema.columns WHERE table_schema = :schema
"""
_INDEXES: Final = "SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = :schema"
_CONSTRAINTS: Final = """
SELECT r.relname, c.conname || ' ' || pg_get_constraintdef(c.oid)
FROM pg_constraint c JOIN pg_class r ON r.oid = c.conrelid
    JOIN pg_namespace n ON n.oid = r.relnamespace
WHERE n.nspname = :schema
"""


def _postgresql_definitions(connection: Connection, schema: str) -> set[str]:
    # Definitions name a schema only where it is not the first on the path.
    qualified = re.compile(rf"\b{schema}\.")
    return {
        f"{table}: {qualified.sub('', definition)}"
        for query in (_COLUMNS, _INDEXES, _CONSTRAINTS)
        for table, definition in connection.execute(text(query), {"schema": schema})
        if table != VERSION_TABLE
    }
