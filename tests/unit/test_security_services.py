"""Security services: how they are kept, on which networks they are, and what becomes of keys."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, delete, insert, select, update

from scheduler.acceptance import lookup
from scheduler.queries.reads import READS
from scheduler.requests.base import parse
from scheduler.requests.verbs import VERBS
from tests.support.intake import add_network
from tests.support.pace import limit
from tests.support.secret import AD, PASSWORD, Asker, config_of, forms
from tests.support.services import PostgresServer
from tests.support.tables import tables
from worker.db import security_services as security
from worker.db.core.engine import db_now, engine_for, reading, transaction
from worker.db.share_servers import store as servers
from worker.db.tables.main import (
    operations,
    security_services,
    share_network_security_services,
    share_networks,
    share_servers,
    shares,
)
from worker.errors import ConfigurationError, Conflict, Fatal, InvalidRequest, NotFound
from worker.model import SecurityServiceType
from worker.sealing import Keys
from worker.tasks.security import check_keys, services_of


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One database for all tests: each has a project of its own."""
    made = f"sqlite:///{tmp_path_factory.mktemp('security')}/sharewright.db"
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres_server")
        made = server.url(server.create_database())
    tables(made)
    yield made
    engine_for(made).dispose()


@pytest.fixture
def ask(url: str, tmp_path: Path) -> Asker:
    return Asker(config_of(url, tmp_path / "secrets"))


@pytest.fixture
def engine(url: str) -> Engine:
    return engine_for(url)


def read(ask: Asker, verb: str, **fields: Any) -> dict[str, Any]:
    context = {"project_id": ask.project}
    request = parse(VERBS[verb], {"version": 1, "context": context, **fields})
    with reading(engine_for(ask.config.database.url)) as connection:
        return READS[verb](connection, request, ask.config)


def directory(ask: Asker, project: str | None = None, **fields: Any) -> dict[str, Any]:
    """An Active Directory with a password."""
    values = {**AD, "password": ask.password(project), **fields}
    return ask("create_security_service", project, **values)


def ldap(ask: Asker, **fields: Any) -> str:
    made = ask("create_security_service", type="ldap", **{"server": "ldap.example", **fields})
    return str(made["id"])


def network(ask: Asker) -> str:
    return add_network(ask.config.database.url, ask.project)


def security_key(engine: Engine, network_id: str) -> str:
    with reading(engine) as connection:
        n = share_networks.c
        return str(
            connection.execute(select(n.security_key).where(n.id == network_id)).scalar_one()
        )


def add_share(engine: Engine, network_id: str, **values: Any) -> str:
    with transaction(engine) as connection:
        return insert_share(connection, network_id, **values)


def insert_share(connection: Connection, network_id: str, **values: Any) -> str:
    defaults = {
        "id": str(uuid.uuid4()),
        "project_id": "p1",
        "metadata": {},
        "size": 1,
        "share_proto": "NFS",
        "share_network_id": network_id,
        "backend": "b",
        "pool": "p",
        "status": "creating",
        "export_locations": [],
        "created_at": db_now(),
        "updated_at": db_now(),
    }
    connection.execute(insert(shares).values({**defaults, **values}))
    return str(defaults["id"])


def add_server(engine: Engine, network_id: str, **values: Any) -> str:
    server_id = str(uuid.uuid4())
    with transaction(engine) as connection:
        connection.execute(
            insert(share_servers).values(
                **{
                    "id": server_id,
                    "project_id": "p1",
                    "share_network_id": network_id,
                    "backend": "b",
                    "status": "active",
                    "builder_id": "o",
                    "created_at": db_now(),
                    "updated_at": db_now(),
                    **values,
                }
            )
        )
    return server_id


# How it is kept.


def test_it_is_kept_sealed_and_shown_without_the_password(ask: Asker, engine: Engine) -> None:
    key = Keys(ask.config.secrets.directory).current()
    assert key is not None
    made = directory(ask, name="corp", ou="OU=shares", server="dc1.corp.example,10.0.0.1")
    assert made["password_key_id"] == key.id
    assert {name: made[name] for name in AD} == AD
    assert "password" not in made
    assert "password_sealed" not in made
    assert read(ask, "show_security_service", security_service_id=made["id"]) == made
    assert read(ask, "list_security_services")["security_services"] == [made]
    with reading(engine) as connection:
        mine = security_services.c.project_id == ask.project
        row = connection.execute(select(security_services).where(mine)).one()
        of = operations.c.project_id == ask.project
        payload = connection.execute(select(operations.c.payload).where(of)).scalar_one()
    assert payload["user"] == "joiner"
    assert "password" not in payload
    assert not any(needle in row.password_sealed for needle in forms().values())
    opened = security.opened(row, Keys(ask.config.secrets.directory))
    assert opened.password == PASSWORD
    assert PASSWORD not in repr(opened)


def test_a_password_needs_a_user(ask: Asker) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ldap(ask, password=ask.password())
    assert caught.value.field == "user"


def test_a_password_for_an_unknown_key_leaves_no_row(ask: Asker, engine: Engine) -> None:
    other = {**ask.password(), "key_id": "0" * 16}
    with pytest.raises(InvalidRequest, match="no longer, this service's"):
        ask("create_security_service", **AD, password=other)
    made = directory(ask)
    with pytest.raises(InvalidRequest):
        ask("update_security_service", security_service_id=made["id"], password=other)
    with reading(engine) as connection:
        mine = security_services.c.project_id == ask.project
        found = connection.execute(select(security_services.c.revision).where(mine))
        assert found.scalars().all() == [0]


def test_the_sealing_key_is_shown_or_its_absence_told(ask: Asker) -> None:
    key = Keys(ask.config.secrets.directory).current()
    assert key is not None
    shown = read(ask, "show_sealing_key")
    assert shown == {"key_id": key.id, "public_key": base64.b64encode(key.public).decode()}
    public = ask.config.secrets.directory / f"{key.id}.pub"
    public.write_text("broken")
    with pytest.raises(NotFound, match=key.id):
        read(ask, "show_sealing_key")
    (ask.config.secrets.directory / "current").unlink()
    with pytest.raises(NotFound, match="secrets generate"):
        read(ask, "show_sealing_key")


# Whose they are.


def test_another_projects_is_not_found(ask: Asker) -> None:
    theirs = directory(ask, "another")["id"]
    mine = network(ask)
    for verb in ("update_security_service", "delete_security_service"):
        with pytest.raises(NotFound):
            ask(verb, security_service_id=theirs)
    with pytest.raises(NotFound) as caught:
        ask("add_security_service", security_service_id=theirs, share_network_id=mine)
    assert caught.value.field == "security_service_id"
    with pytest.raises(NotFound) as caught:
        ask("add_security_service", "another", security_service_id=theirs, share_network_id=mine)
    assert caught.value.field == "share_network_id"
    with pytest.raises(NotFound):
        read(ask, "show_security_service", security_service_id=theirs)
    assert read(ask, "list_security_services")["security_services"] == []


# On share networks.


def test_one_of_each_type_and_listed(ask: Asker, engine: Engine) -> None:
    on, first, second = network(ask), ldap(ask), ldap(ask)
    ad = directory(ask)["id"]
    ask("add_security_service", security_service_id=first, share_network_id=on)
    with pytest.raises(Conflict, match=first):
        ask("add_security_service", security_service_id=second, share_network_id=on)
    with pytest.raises(Conflict):
        ask("add_security_service", security_service_id=first, share_network_id=on)
    with_one = security_key(engine, on)
    ask("add_security_service", security_service_id=ad, share_network_id=on)
    shown = read(ask, "show_share_network", share_network_id=on)
    assert shown["security_services"] == [
        {"id": ad, "type": "active_directory"},
        {"id": first, "type": "ldap"},
    ]
    assert "security_key" not in shown
    listed = read(ask, "list_security_services", share_network_id=on)["security_services"]
    assert {one["id"] for one in listed} == {ad, first}
    both = security_key(engine, on)
    ask("remove_security_service", security_service_id=ad, share_network_id=on)
    assert security_key(engine, on) == with_one != both
    with pytest.raises(NotFound):
        ask("remove_security_service", security_service_id=ad, share_network_id=on)
    ask("remove_security_service", security_service_id=first, share_network_id=on)
    assert security_key(engine, on) == ""


def test_an_added_one_is_not_deleted_and_goes_with_the_network(ask: Asker, engine: Engine) -> None:
    on, service = network(ask), ldap(ask)
    ask("add_security_service", security_service_id=service, share_network_id=on)
    with pytest.raises(Conflict, match=on):
        ask("delete_security_service", security_service_id=service)
    ask("delete_share_network", share_network_id=on)
    with reading(engine) as connection:
        a = share_network_security_services.c
        assert connection.execute(select(a.type).where(a.share_network_id == on)).all() == []
    assert ask("delete_security_service", security_service_id=service)["status"] == "deleted"


def test_a_change_makes_another_key_and_a_new_name_does_not(ask: Asker, engine: Engine) -> None:
    on, service = network(ask), ldap(ask)
    ask("add_security_service", security_service_id=service, share_network_id=on)
    before = security_key(engine, on)
    named = ask("update_security_service", security_service_id=service, name="n", description="d")
    assert (named["name"], named["description"], named["server"]) == ("n", "d", "ldap.example")
    assert security_key(engine, on) == before
    changed = ask("update_security_service", security_service_id=service, server="10.0.0.9")
    assert (changed["name"], changed["server"]) == ("n", "10.0.0.9")
    assert security_key(engine, on) not in {before, ""}
    with pytest.raises(InvalidRequest) as caught:
        ask("update_security_service", security_service_id=service, password=ask.password())
    assert caught.value.field == "user"


@pytest.mark.parametrize("user", ["share", "server", "new server", "creating", "deleting"])
def test_a_network_in_use_takes_no_change(ask: Asker, engine: Engine, user: str) -> None:
    on, service, other = network(ask), ldap(ask), directory(ask)["id"]
    ask("add_security_service", security_service_id=service, share_network_id=on)
    before = security_key(engine, on)
    used = {
        "share": lambda: add_share(engine, on, status="available", share_server_id="v"),
        "server": lambda: add_server(engine, on, shares=1),
        "new server": lambda: add_server(engine, on, status="new"),
        "creating": lambda: add_share(engine, on),
        "deleting": lambda: add_share(engine, on, status="deleting"),
    }[user]()
    for verb, fields in (
        ("add_security_service", {"security_service_id": other, "share_network_id": on}),
        ("remove_security_service", {"security_service_id": service, "share_network_id": on}),
        ("update_security_service", {"security_service_id": service, "domain": "d.example"}),
    ):
        with pytest.raises(Conflict) as caught:
            ask(verb, **fields)
        assert used in caught.value.message
        assert on in caught.value.message
    ask("update_security_service", security_service_id=service, name="new")
    assert security_key(engine, on) == before


def test_credentials_can_be_changed_while_shares_exist(ask: Asker, engine: Engine) -> None:
    """Servers are made for the directory; user and password are used at the next join or leave."""
    on, service = network(ask), directory(ask)["id"]
    ask("add_security_service", security_service_id=service, share_network_id=on)
    add_server(engine, on, shares=1)
    before = security_key(engine, on)
    changed = ask(
        "update_security_service",
        security_service_id=service,
        user="another",
        password=ask.password(),
    )
    assert changed["user"] == "another"
    assert security_key(engine, on) == before
    with pytest.raises(Conflict, match="user and password"):
        ask("update_security_service", security_service_id=service, domain="d.example")


@pytest.mark.parametrize("user", ["single_svm share", "failed share", "idle server", "deleting"])
def test_what_no_server_serves_is_no_hindrance(ask: Asker, engine: Engine, user: str) -> None:
    on, service = network(ask), ldap(ask)
    match user:
        case "single_svm share":
            add_share(engine, on, status="available")
        case "failed share":
            add_share(engine, on, status="error")
        case "idle server":
            add_server(engine, on, idle_since=1.0)
        case _:
            add_server(engine, on, status="deleting")
    ask("add_security_service", security_service_id=service, share_network_id=on)
    assert security_key(engine, on)


def test_a_create_and_an_addition_do_not_pass_each_other(ask: Asker, engine: Engine) -> None:
    """Whoever comes second waits for the first, and sees what it did."""
    on, service = network(ask), ldap(ask)
    with ThreadPoolExecutor(1) as threads:
        with transaction(engine) as connection:
            lookup.share_network(connection, ask.project, named=on)
            adding = threads.submit(
                ask, "add_security_service", security_service_id=service, share_network_id=on
            )
            with pytest.raises(TimeoutError):
                adding.result(timeout=1)
            share = insert_share(connection, on)
        with pytest.raises(Conflict, match=share):
            adding.result(timeout=limit())


def test_who_retires_a_key_waits_for_who_uses_it(ask: Asker, engine: Engine) -> None:
    key = ask.password()["key_id"]
    with ThreadPoolExecutor(1) as threads:
        with transaction(engine) as connection:
            connection.execute(
                insert(security_services).values(
                    id=str(uuid.uuid4()),
                    project_id=ask.project,
                    type="ldap",
                    password_key_id=key,
                    password_sealed=b"x",
                    created_at=db_now(),
                    updated_at=db_now(),
                )
            )
            counting = threads.submit(settled, engine)
            with pytest.raises(TimeoutError):
                counting.result(timeout=1)
        assert counting.result(timeout=limit())[key] == 1


def settled(engine: Engine) -> Mapping[str, int]:
    with transaction(engine) as connection:
        return security.settled_uses(connection)


def test_sealing_anew_leaves_out_what_cannot_be_opened(ask: Asker, engine: Engine) -> None:
    keys = Keys(ask.config.secrets.directory)
    made = [directory(ask)["id"] for _ in range(3)]
    with transaction(engine) as connection:
        c = security_services.c
        # What other tests have made has keys of theirs.
        connection.execute(delete(security_services).where(c.project_id != ask.project))
        broken = update(security_services).where(c.id == made[0])
        connection.execute(broken.values(password_sealed=b"x" * 64))
    new = keys.generate()
    with transaction(engine) as connection:
        first = security.reseal(connection, keys, after="", limit=2)
        second = security.reseal(connection, keys, after=max(first), limit=2)
        assert {**first, **second} == {one: one != made[0] for one in made}
        assert (len(first), len(second)) == (2, 1)
        found = connection.execute(select(security_services).where(c.id != made[0])).all()
        assert [security.opened(row, keys).password for row in found] == [PASSWORD] * 2
        assert {row.password_key_id for row in found} == {new.id}
        again = security.reseal(connection, keys, after="", limit=100)
        assert again == {made[0]: False}


# What a worker is given.


def server_on(engine: Engine, network_id: str) -> Any:
    server_id = add_server(engine, network_id, security_key=security_key(engine, network_id))
    with reading(engine) as connection:
        return servers.get(connection, server_id)


def test_a_worker_opens_what_its_server_was_made_for(ask: Asker, engine: Engine) -> None:
    on, ad, other = network(ask), directory(ask)["id"], ldap(ask)
    for service in (ad, other):
        ask("add_security_service", security_service_id=service, share_network_id=on)
    server = server_on(engine, on)
    with reading(engine) as connection:
        handed = services_of(ask.config, connection, server)
    assert [(one.type, one.password) for one in handed] == [
        (SecurityServiceType.ACTIVE_DIRECTORY, PASSWORD),
        (SecurityServiceType.LDAP, None),
    ]
    with transaction(engine) as connection:
        mine = share_servers.c.id == server.id
        connection.execute(update(share_servers).where(mine).values(security_key="another"))
        with pytest.raises(Fatal, match="changed after"):
            services_of(ask.config, connection, servers.get(connection, server.id))  # type: ignore[arg-type] # it is there


def test_a_missing_key_is_named_at_use_and_at_start(ask: Asker, engine: Engine) -> None:
    on, ad = network(ask), directory(ask)
    ask("add_security_service", security_service_id=ad["id"], share_network_id=on)
    server = server_on(engine, on)
    (ask.config.secrets.directory / f"{ad['password_key_id']}.key").unlink()
    with reading(engine) as connection, pytest.raises(Fatal) as caught:
        services_of(ask.config, connection, server)
    assert ad["password_key_id"] in caught.value.message


def test_a_worker_with_passwords_and_without_keys_does_not_start(
    tmp_path: Path, sqlite_url: str
) -> None:
    config = config_of(sqlite_url, tmp_path / "secrets")
    check_keys(config)  # there are no tables yet: that is told elsewhere
    tables(sqlite_url)
    check_keys(config)
    ask = Asker(config)
    made = [directory(ask)["password_key_id"] for _ in range(2)]
    check_keys(config)
    (config.secrets.directory / f"{made[0]}.key").unlink()
    with pytest.raises(ConfigurationError, match=made[0]) as caught:
        check_keys(config)
    assert "2 passwords are sealed with key" in caught.value.message


def test_a_password_of_another_project_is_worth_nothing(ask: Asker, engine: Engine) -> None:
    """Who copies a sealed password and names a server of his own does not get it sent there."""
    on = network(ask)
    copied = directory(ask, server="evil.example", password=ask.password("victim"))["id"]
    ask("add_security_service", security_service_id=copied, share_network_id=on)
    with reading(engine) as connection, pytest.raises(Fatal, match=copied) as caught:
        services_of(ask.config, connection, server_on(engine, on))
    assert PASSWORD not in repr(caught.value.to_json())
