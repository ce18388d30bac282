"""Other people's settings: of the role, in the URL, and of a pooler between us and the server."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError

from tests.support.fakes import Fakes
from tests.support.pace import limit
from tests.support.pgbouncer import PgBouncer
from tests.support.services import PostgresServer, RedisServer
from worker.db.core.engine import check_settings, open_engine, reading, statement, transaction
from worker.db.schema import check, upgrade
from worker.errors import ConfigurationError

ROLE_SETTINGS = {
    "lock_timeout": "50ms",
    "default_transaction_isolation": "serializable",
    "statement_timeout": "1s",
    "idle_in_transaction_session_timeout": "1s",
    "synchronous_commit": "off",
    "search_path": "elsewhere",
    "timezone": "America/St_Johns",
    "client_encoding": "LATIN1",
}
OURS = {
    "lock_timeout": "0",
    "transaction_isolation": "read committed",
    "statement_timeout": "10s",
    "idle_in_transaction_session_timeout": "10s",
    "synchronous_commit": "on",
    "search_path": "elsewhere",
}
CREATES = 30


class Role:
    """A role of its own, with settings as a database administrator makes them."""

    def __init__(self, server: PostgresServer, url: str) -> None:
        self.server, self.url = server, make_url(url)
        self.name = f"role_of_{self.url.database}"
        self._run(f"CREATE ROLE {self.name} LOGIN SUPERUSER", "CREATE SCHEMA elsewhere")

    def set(self, settings: dict[str, str]) -> None:
        self._run(*(f"ALTER ROLE {self.name} SET {one} = '{to}'" for one, to in settings.items()))

    def login(self) -> URL:
        return self.url.set(username=self.name)

    def drop(self) -> None:
        self._run(f"DROP OWNED BY {self.name} CASCADE", f"DROP ROLE {self.name}")

    def _run(self, *statements: str) -> None:
        url = self.url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(url, autocommit=True) as connection:
            for one in statements:
                connection.execute(one.encode())


@pytest.fixture
def role(postgres_server: PostgresServer, postgres_url: str) -> Iterator[Role]:
    made = Role(postgres_server, postgres_url)
    yield made
    made.drop()


@pytest.fixture(params=["transaction", "session"])
def pgbouncer(
    request: pytest.FixtureRequest, postgres_server: PostgresServer, tmp_path: Path
) -> Iterator[PgBouncer]:
    bouncer = PgBouncer(postgres_server, pool_mode=request.param)
    try:
        yield bouncer
    finally:
        bouncer.close()


def text_of(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def shown(engine: Engine) -> list[dict[str, str]]:
    """The settings in a transaction, and in a statement by itself."""
    found = []
    for begin in (transaction, statement):
        with begin(engine) as connection:
            found.append(
                {one: connection.execute(text(f"SHOW {one}")).scalar_one() for one in OURS}
            )
    return found


def test_a_session_sets_what_it_relies_on(role: Role) -> None:
    role.set(ROLE_SETTINGS)
    engine = open_engine(role.login())
    assert shown(engine) == [OURS, OURS]
    with reading(engine) as connection:
        assert connection.execute(text("SELECT 'Ж'")).scalar_one() == "Ж"
    engine.dispose()


def test_a_pooled_session_sets_what_it_relies_on(role: Role, pgbouncer: PgBouncer) -> None:
    role.set(ROLE_SETTINGS)
    engine = open_engine(pgbouncer.start(role.login()))
    assert shown(engine) == [OURS, OURS]
    engine.dispose()


def test_a_role_that_is_read_only_is_refused_with_a_sentence(role: Role) -> None:
    check_settings(text_of(role.login()))
    role.set({"default_transaction_read_only": "on"})
    with pytest.raises(ConfigurationError, match=f"{role.name} has default_transaction_read_only"):
        check_settings(text_of(role.login()))


def test_a_pooler_without_transactions_is_refused_with_a_sentence(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    bouncer = PgBouncer(postgres_server, pool_mode="statement")
    try:
        url = bouncer.start(make_url(postgres_url))
        with pytest.raises(ConfigurationError, match="pool_mode"):
            check_settings(text_of(url))
    finally:
        bouncer.close()


def test_a_database_that_is_away_is_not_refused(postgres_url: str) -> None:
    check_settings(text_of(make_url(postgres_url).set(port=1)))


def test_a_search_path_in_the_url_is_where_the_tables_go(role: Role) -> None:
    url = role.url.update_query_dict({"options": "-csearch_path=elsewhere"})
    upgrade(text_of(url))
    engine = open_engine(url)
    with reading(engine) as connection:
        tables = connection.execute(
            text("SELECT schemaname, count(*) FROM pg_tables WHERE tablename = 'shares' GROUP BY 1")
        ).all()
    assert [tuple(one) for one in tables] == [("elsewhere", 1)]
    assert check(engine) == []
    assert {one["search_path"] for one in shown(engine)} == {"elsewhere"}
    engine.dispose()


def test_one_of_several_hosts_takes_writes(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    database = make_url(postgres_url)
    hosts = (f"127.0.0.1:{port}" for port in (1, postgres_server.port))
    url = URL.create(
        database.drivername,
        database.username,
        database=database.database,
        query={"host": tuple(hosts), "target_session_attrs": "read-write"},
    )
    engine = open_engine(url)
    with transaction(engine) as connection:
        connection.execute(text("CREATE TABLE written (here integer)"))
    engine.dispose()


def creates(tmp_path: Path, url: URL, redis_server: RedisServer) -> None:
    """Thirty shares at once, and what the processes had to say of it."""
    site = Fakes(tmp_path, text_of(url), redis_server)
    try:
        site.start(concurrency=2)
        network = site.network()
        asked = site.payload(size=1, share_network_id=network)
        sent = [str(uuid.uuid4()) for _ in range(CREATES)]
        for operation_id in sent:
            site.client.send("create_share", asked, operation_id=operation_id)
        for operation_id in sent:
            site.client.result(operation_id, timeout=limit())
        assert site.count_available() == CREATES
        assert "prepared statement" not in site.logs()
        assert "Traceback" not in site.logs()
    except BaseException:
        print(site.logs())
        raise
    finally:
        site.close()


@pytest.mark.parametrize(
    "settings",
    [
        {"lock_timeout": "50ms"},
        {"default_transaction_isolation": "serializable"},
        {"default_transaction_isolation": "repeatable read"},
        ROLE_SETTINGS,
    ],
    ids=lambda settings: "all" if len(settings) > 1 else "-".join(*settings.items()),
)
def test_thirty_creates_whatever_the_role_says(
    tmp_path: Path, role: Role, redis_server: RedisServer, settings: dict[str, str]
) -> None:
    role.set(settings)
    creates(tmp_path, role.login(), redis_server)


def test_thirty_creates_through_a_pooler(
    tmp_path: Path, postgres_url: str, pgbouncer: PgBouncer, redis_server: RedisServer
) -> None:
    creates(tmp_path, pgbouncer.start(make_url(postgres_url)), redis_server)


def test_an_error_of_the_database_is_none_of_a_setting(role: Role) -> None:
    """Otherwise the tests above would show nothing."""
    role.set({"lock_timeout": "50ms"})
    plain = role.login().set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain) as connection:
        assert connection.execute("SHOW lock_timeout").fetchone() == ("50ms",)
    with pytest.raises(DBAPIError), transaction(open_engine(role.login())) as connection:
        connection.execute(text("SELECT no_such_column"))
