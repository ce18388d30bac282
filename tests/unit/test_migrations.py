"""Migrations and models make the same tables, on both kinds of database."""

from __future__ import annotations

import subprocess
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.engine import make_url

from tests.support.services import ROOT, python
from worker.db import schema
from worker.db.core.engine import open_engine, reading, transaction


def test_migrations_make_exactly_the_models_tables(database_url: str) -> None:
    schema.upgrade(database_url)
    engine = open_engine(make_url(database_url))
    try:
        assert schema.check(engine) == []
    finally:
        engine.dispose()


def test_a_difference_is_found(database_url: str) -> None:
    schema.upgrade(database_url)
    engine = open_engine(make_url(database_url))
    try:
        with transaction(engine) as connection:
            connection.execute(text("DROP INDEX uq_operations_live_resource"))
            connection.execute(
                text("CREATE INDEX uq_operations_live_resource ON operations (resource_kind)")
            )
            connection.execute(text("ALTER TABLE shares ADD COLUMN colour VARCHAR(8)"))
        found = schema.check(engine)
    finally:
        engine.dispose()
    assert any(line.startswith("missing: operations:") for line in found)
    assert any(line.startswith("not in the models: operations:") for line in found)
    assert any("colour" in line for line in found)


def test_no_table_is_left_by_the_check(database_url: str) -> None:
    schema.upgrade(database_url)
    engine = open_engine(make_url(database_url))
    try:
        assert schema.check(engine) == schema.check(engine) == []
    finally:
        engine.dispose()


def test_upgrading_twice_and_four_at_once_is_harmless(database_url: str) -> None:
    command = python("tests.unit.test_migrations", database_url)
    running = [subprocess.Popen(command, cwd=ROOT) for _ in range(4)]
    assert [process.wait() for process in running] == [0, 0, 0, 0]
    assert schema.upgrade(database_url) == schema.head()
    engine = open_engine(make_url(database_url))
    try:
        with reading(engine) as connection:
            assert schema.revision(connection) == schema.head()
    finally:
        engine.dispose()


def test_a_database_before_its_first_upgrade_has_no_revision(sqlite_url: str) -> None:
    engine = open_engine(make_url(sqlite_url))
    try:
        with reading(engine) as connection:
            assert schema.revision(connection) is None
    finally:
        engine.dispose()


def test_the_directory_of_a_new_file_is_made(tmp_path: Path) -> None:
    schema.upgrade(f"sqlite:///{tmp_path}/a/b/new.db")
    assert (tmp_path / "a/b/new.db").exists()


if __name__ == "__main__":
    import sys

    schema.upgrade(sys.argv[1])
