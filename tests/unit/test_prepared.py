"""Statements that are built once: the same on both databases, in rows, errors and transactions."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, bindparam, delete, insert, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from tests.support.services import PostgresServer
from tests.support.tables import tables
from worker.db.core.engine import engine_for, reading, statement, transaction
from worker.db.core.outages import is_passing
from worker.db.core.prepared import Prepared
from worker.db.tables.main import share_types

_t = share_types.c
ADD = Prepared(
    insert(share_types).values(
        id=bindparam("id"),
        project_id="p",
        name=bindparam("name"),
        created_at=1.0,
        updated_at=1.0,
        extra_specs=bindparam("extra_specs"),
    )
)
GET = Prepared(select(share_types).where(_t.name == bindparam("wanted")))
RENAME = Prepared(
    update(share_types)
    .where(_t.name.in_(["a", "b"]), _t.id == bindparam("of"))
    .values(name=bindparam("to"))
    .returning(_t.id, _t.name)
)
REMOVE = Prepared(delete(share_types).where(_t.id == bindparam("of")))


@pytest.fixture
def engine(database_url: str) -> Engine:
    return tables(database_url)


def add(engine: Engine, name: str) -> None:
    with transaction(engine) as connection:
        ADD.run(connection, id=name, name=name, extra_specs={"tier": name})


def test_rows_have_names_and_types(engine: Engine) -> None:
    add(engine, "a")
    with reading(engine) as connection:
        row = GET.first(connection, wanted="a")
        assert row is not None
        assert (row.name, row.extra_specs) == ("a", {"tier": "a"})
        assert row._asdict()["created_at"] == 1.0
        assert GET.first(connection, wanted="no such") is None
        assert [found.id for found in GET.all(connection, wanted="a")] == ["a"]


def test_constants_are_part_of_the_statement(engine: Engine) -> None:
    for name in ("a", "c"):
        add(engine, name)
    with transaction(engine) as connection:
        changed = RENAME.first(connection, of="a", to="b")
        assert changed is not None
        assert changed.name == "b"
        assert RENAME.first(connection, of="c", to="d") is None
        assert REMOVE.run(connection, of="a") == 1
        assert REMOVE.run(connection, of="a") == 0


def test_what_is_rolled_back_never_was(engine: Engine) -> None:
    with pytest.raises(LookupError), transaction(engine) as connection:  # noqa: PT012 - all of it is
        ADD.run(connection, id="a", name="a", extra_specs={})
        raise LookupError
    with reading(engine) as connection:
        assert GET.first(connection, wanted="a") is None


def test_one_statement_is_committed_by_itself(engine: Engine) -> None:
    with statement(engine) as connection:
        ADD.run(connection, id="a", name="a", extra_specs={})
    with transaction(engine) as connection:
        assert GET.first(connection, wanted="a") is not None


def test_a_broken_constraint_is_sqlalchemys_error(engine: Engine) -> None:
    add(engine, "a")
    with pytest.raises(IntegrityError) as raised, transaction(engine) as connection:
        ADD.run(connection, id="b", name="a", extra_specs={"password": "secret"})
    assert not is_passing(raised.value)
    assert "'secret'" not in str(raised.value) or engine.dialect.name == "sqlite"
    with reading(engine) as connection:
        assert GET.first(connection, wanted="a") is not None


def test_a_server_that_went_away_is_an_outage_and_comes_back() -> None:
    server = PostgresServer()
    try:
        engine = tables(server.start().url())
        add(engine, "a")
        with pytest.raises(DBAPIError) as raised, transaction(engine) as connection:  # noqa: PT012 - in between
            server.restart(immediate=True)
            GET.first(connection, wanted="a")
        assert raised.value.connection_invalidated
        assert is_passing(raised.value)
        with reading(engine) as connection:
            assert GET.first(connection, wanted="a") is not None
        server.stop(immediate=True)
        with pytest.raises(DBAPIError) as raised, transaction(engine) as connection:
            GET.first(connection, wanted="a")
        assert is_passing(raised.value)
    finally:
        engine_for(server.url()).dispose()
        server.close()
