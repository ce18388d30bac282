"""Share networks by raw SQL: the database refuses what the scheduler would have refused."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError

from tests.support.network_options import ALLOWED, VALUES
from worker.db.core.engine import open_engine, transaction
from worker.db.schema import upgrade
from worker.model import NetworkKind


@pytest.fixture
def tables(database_url: str) -> Iterator[Engine]:
    upgrade(database_url)
    engine = open_engine(make_url(database_url))
    yield engine
    engine.dispose()


_NEEDED = {"project_id": "p1", "metadata": "{}", "created_at": 1.0, "updated_at": 1.0}


def insert_raw(connection: Any, **values: Any) -> IntegrityError | None:
    """INSERT as anybody with the database's password could; None when it is taken."""
    given = {"id": str(uuid.uuid4()), **_NEEDED, **values}
    names, places = ", ".join(given), ", ".join(f":{name}" for name in given)
    statement = text(f"INSERT INTO share_networks ({names}) VALUES ({places})")
    try:
        with connection.begin_nested():
            connection.execute(statement, given)
    except IntegrityError as error:
        return error
    return None


def test_forbidden_by_raw_sql(tables: Engine) -> None:
    """Every kind with every set of columns: 1,792 rows, of which ten may be."""
    columns = {
        name: json.dumps(value) if isinstance(value, list) else value
        for name, value in VALUES.items()
        if name != "managed"
    }
    allowed = {(kind, chosen - {"managed"}) for chosen, kind in ALLOWED.items()}
    taken = set()
    with transaction(tables) as connection:
        for kind in (*map(str, NetworkKind), "other"):
            for size in range(len(columns) + 1):
                for chosen in combinations(columns, size):
                    values = {name: columns[name] for name in chosen}
                    error = insert_raw(connection, kind=kind, **values)
                    if error is None:
                        taken.add((kind, frozenset(chosen)))
                    else:
                        assert "one_kind" in str(error.orig)
    assert taken == allowed


def test_an_existing_row_cannot_become_two_kinds(tables: Engine) -> None:
    with transaction(tables) as connection:
        assert insert_raw(connection, id="n1", kind="nova", nova_network_id="x") is None
        for change in (
            "kind = 'dhcp'",
            "dhcp_endpoint = '10.0.0.2'",
            "nova_network_id = NULL",
            "cidr = '10.0.0.0/24'",
        ):
            with pytest.raises(IntegrityError), connection.begin_nested():
                connection.execute(text(f"UPDATE share_networks SET {change} WHERE id = 'n1'"))


def test_defaults_that_the_database_refuses(tables: Engine) -> None:
    with transaction(tables) as connection:
        private = insert_raw(connection, kind="none", is_default=True)
        assert "default_is_public" in str(private and private.orig)
        assert insert_raw(connection, id="n1", kind="none", is_default=True, is_public=True) is None
        second = insert_raw(connection, kind="none", is_default=True, is_public=True)
        assert "is_default" in str(second and second.orig)
        assert insert_raw(connection, id="n2", kind="none", is_public=True) is None
        for change, network in (("is_public = false", "n1"), ("is_default = true", "n2")):
            with pytest.raises(IntegrityError), connection.begin_nested():
                connection.execute(
                    text(f"UPDATE share_networks SET {change} WHERE id = '{network}'")
                )
