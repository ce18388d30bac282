"""The page on PostgreSQL, followed literally on a real one."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy.engine import make_url

from tests.support.services import ROOT, PostgresServer
from worker.config import from_document
from worker.db.core.engine import open_engine
from worker.db.schema import check, upgrade

PAGE = (ROOT / "docs/how-to/postgresql.md").read_text()


def block(language: str) -> str:
    """The first one of the page."""
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None, f"the page has no {language}"
    return found[1]


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A server of the test's own: the page's role and database have names that others use too."""
    server = PostgresServer()
    try:
        yield server.start()
    finally:
        server.close()


def test_role_database_and_configuration_of_the_page_go_together(
    own_server: PostgresServer,
) -> None:
    config = from_document(tomllib.loads(block("toml")), "the page")
    url = make_url(config.database.url)
    superuser = make_url(own_server.url("postgres"))
    with psycopg.connect(
        host=superuser.host, port=superuser.port, user=superuser.username, autocommit=True
    ) as connection:
        for statement in block("sql").strip().splitlines():
            connection.execute(statement.encode())
    there = url.set(host=superuser.host, port=superuser.port)
    upgrade(there.render_as_string(hide_password=False))
    engine = open_engine(there)
    try:
        assert check(engine) == []
    finally:
        engine.dispose()
