"""What the reading requests answer, and to whom."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, insert
from sqlalchemy.engine import make_url

from scheduler.queries.reads import READS
from scheduler.requests.base import Kind, parse
from scheduler.requests.verbs import VERBS
from worker.config import Config
from worker.db import schema
from worker.db.core.engine import db_now, open_engine, reading, transaction
from worker.db.documents import plain
from worker.db.tables.all import metadata
from worker.db.tables.main import (
    backends,
    operation_aliases,
    operation_steps,
    operations,
    share_networks,
    share_servers,
    share_types,
    shares,
    storage_pools,
)
from worker.errors import Forbidden, InvalidRequest, NotFound
from worker.model import NetworkInfo, ShareServerDetails

CONFIG = Config()


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    opened = open_engine(make_url(database_url))
    metadata.create_all(opened)
    yield opened
    opened.dispose()


def ask(
    engine: Engine, verb: str, project: str = "mine", roles: tuple[str, ...] = (), **fields: Any
) -> dict[str, Any]:
    context = {"project_id": project, "roles": roles}
    request = parse(VERBS[verb], {"version": 1, "context": context, **fields})
    with reading(engine) as connection:
        return READS[verb](connection, request, CONFIG)


def add(engine: Engine, table: Any, **values: Any) -> None:
    with transaction(engine) as connection:
        connection.execute(insert(table).values(**values))


def add_share(engine: Engine, share_id: str, project: str = "mine", **values: Any) -> None:
    add(
        engine,
        shares,
        **{
            "id": share_id,
            "project_id": project,
            "created_at": 1.0,
            "updated_at": 1.0,
            "metadata": {},
            "size": 1,
            "share_proto": "NFS",
            "backend": "b",
            "pool": "p",
            "status": "available",
            "export_locations": [],
            **values,
        },
    )


def add_operation(engine: Engine, operation_id: str, **values: Any) -> None:
    add(
        engine,
        operations,
        **{
            "id": operation_id,
            "project_id": "mine",
            "verb": "create_share",
            "resource_kind": "share",
            "resource_id": f"of-{operation_id}",
            "payload": {"password": "a-planted-secret"},
            "payload_digest": "",
            "saga": "create_share",
            "state": "running",
            "accepted_at": 1.0,
            **values,
        },
    )


def test_every_reading_verb_has_an_answer() -> None:
    assert set(READS) == {name for name, verb in VERBS.items() if verb.kind is Kind.READ}


def test_another_projects_share_is_not_found(engine: Engine) -> None:
    add_share(engine, "s1", project="theirs")
    assert ask(engine, "show_share", "theirs", share_id="s1")["id"] == "s1"
    for verb in ("show_share", "list_access"):
        with pytest.raises(NotFound) as caught:
            ask(engine, verb, share_id="s1")
        assert caught.value.field == "share_id"
    assert ask(engine, "list_shares")["shares"] == []


def test_all_projects_is_for_administrators(engine: Engine) -> None:
    add_share(engine, "s1", project="theirs")
    with pytest.raises(Forbidden) as caught:
        ask(engine, "list_shares", all_projects=True)
    assert caught.value.field == "all_projects"
    answer = ask(engine, "list_shares", roles=("admin",), all_projects=True)
    assert [share["id"] for share in answer["shares"]] == ["s1"]


def test_pages_are_complete_and_disjoint(engine: Engine) -> None:
    for number in range(10):  # several of the same age: the id decides
        add_share(engine, f"s{number}", created_at=float(number // 4))
    add_share(engine, "t", project="theirs")
    seen: list[str] = []
    marker = None
    for _ in range(4):
        page = ask(engine, "list_shares", limit=3, marker=marker)
        seen += [share["id"] for share in page["shares"]]
        marker = page["next_marker"]
    assert seen == [f"s{number}" for number in range(10)]
    assert marker is None


def test_a_full_last_page_has_no_next(engine: Engine) -> None:
    add_share(engine, "s1")
    assert ask(engine, "list_shares", limit=1)["next_marker"] is None


def test_a_marker_of_another_project_is_refused(engine: Engine) -> None:
    add_share(engine, "t", project="theirs")
    with pytest.raises(InvalidRequest) as caught:
        ask(engine, "list_shares", marker="t")
    assert caught.value.field == "marker"


def test_filters(engine: Engine) -> None:
    add(
        engine,
        share_types,
        id="type-1",
        name="gold",
        project_id="p",
        created_at=1.0,
        updated_at=1.0,
        extra_specs={},
    )
    add_share(engine, "s1", share_type_id="type-1", name="one")
    add_share(engine, "s2", status="error")
    for fields, expected in (
        ({"share_type": "gold"}, ["s1"]),
        ({"share_type": "type-1"}, ["s1"]),
        ({"name": "one", "status": "error"}, []),
        ({"status": "error"}, ["s2"]),
        ({"backend": "b"}, ["s1", "s2"]),
    ):
        found = ask(engine, "list_shares", **fields)["shares"]
        assert [share["id"] for share in found] == expected, fields
    assert ask(engine, "show_share_type", share_type="gold")["id"] == "type-1"


def test_a_public_network_is_everybodys(engine: Engine) -> None:
    for network_id, public in (("open", True), ("closed", False)):
        add(
            engine,
            share_networks,
            id=network_id,
            project_id="theirs",
            kind="none",
            is_public=public,
            metadata={},
            created_at=1.0,
            updated_at=1.0,
        )
    found = ask(engine, "list_share_networks", kind="none")["share_networks"]
    assert [network["id"] for network in found] == ["open"]
    with pytest.raises(NotFound):
        ask(engine, "show_share_network", share_network_id="closed")


def add_server(engine: Engine, server_id: str, backend: str, **values: Any) -> None:
    info = NetworkInfo(
        cidr="10.0.0.0/24",
        netmask="255.255.255.0",
        prefix_length=24,
        ip_version=4,
        broadcast="10.0.0.255",
        gateway="10.0.0.1",
        addresses=("10.0.0.10",),
        segmentation_type="vxlan",
        segmentation_id=5000,
        mtu=1450,
    )
    details = ShareServerDetails(server_id, info.addresses, {"bridge": "swb1"})
    given = {
        "id": server_id,
        "project_id": "mine",
        "share_network_id": "net",
        "backend": backend,
        "status": "active",
        "builder_id": "op",
        "network_info": plain(info),
        "details": plain(details),
        "created_at": 1.0,
        "updated_at": 1.0,
    }
    add(engine, share_servers, **{**given, **values})


def test_a_share_network_tells_its_tenant_what_to_attach_to(engine: Engine) -> None:
    add(
        engine,
        share_networks,
        id="net",
        project_id="theirs",
        kind="managed",
        is_public=True,
        metadata={},
        created_at=1.0,
        updated_at=1.0,
    )
    assert ask(engine, "show_share_network", share_network_id="net")["attachments"] == []
    add_server(engine, "theirs", "b3", project_id="theirs")
    add_server(engine, "leaving", "b3", status="deleting")
    add_server(engine, "second", "b2")
    for number in range(3):
        add_server(engine, f"first-{number}", "b1")
    expected = {
        "cidr": "10.0.0.0/24",
        "gateway": "10.0.0.1",
        "segmentation_type": "vxlan",
        "segmentation_id": 5000,
        "mtu": 1450,
        "bridge": "swb1",
    }
    found = ask(engine, "show_share_network", share_network_id="net")["attachments"]
    assert found == [{"backend": backend, **expected} for backend in ("b1", "b2")]


def test_an_operation_shows_its_timeline_and_no_payload(engine: Engine) -> None:
    add_operation(
        engine, "op", task="get_share_server", phase="waiting", waits_for="share_server:k"
    )
    add(engine, operation_aliases, id="again", operation_id="op", created_at=1.0)
    add(
        engine,
        operation_steps,
        operation_id="op",
        task="allocate_network",
        outcome="done",
        attempt=1,
        worker="w",
        started_at=1.0,
        finished_at=1.5,
    )
    shown = ask(engine, "show_operation", operation_id="op")
    assert (shown["task"], shown["phase"], shown["waits_for"]) == (
        "get_share_server",
        "waiting",
        "share_server:k",
    )
    assert [(step["task"], step["seconds"]) for step in shown["steps"]] == [
        ("allocate_network", 0.5)
    ]
    assert "a-planted-secret" not in str(shown)
    assert ask(engine, "show_operation", operation_id="again") == shown
    with pytest.raises(NotFound):
        ask(engine, "show_operation", "theirs", operation_id="op")


def test_operations_come_in_the_order_of_acceptance(engine: Engine) -> None:
    for name in ("c", "a", "b"):
        add_operation(engine, name)
    first = ask(engine, "list_operations", limit=2)
    assert [one["id"] for one in first["operations"]] == ["c", "a"]
    rest = ask(engine, "list_operations", limit=2, marker=first["next_marker"])
    assert [one["id"] for one in rest["operations"]] == ["b"]
    assert rest["next_marker"] is None
    assert "a-planted-secret" not in str(first)


def test_a_backend_is_up_while_its_report_is_fresh(engine: Engine) -> None:
    add(engine, backends, name="old", report={}, reported_at=1.0)
    add(engine, backends, name="fresh", report={"mode": "single_svm"}, reported_at=db_now())
    add(engine, backends, name="never", report={}, report_error="No answer.")
    add(
        engine,
        storage_pools,
        backend="fresh",
        name="p",
        total_gib=10,
        free_gib=4,
        capabilities={},
        allocated_gib=6,
        shares=2,
        reported_at=1.0,
    )
    first = ask(engine, "list_backends", limit=2)
    assert {one["name"]: one["state"] for one in first["backends"]} == {
        "fresh": "up",
        "never": "down",
    }
    assert first["next_marker"] == "never"
    assert ask(engine, "show_backend", backend="old")["state"] == "down"
    assert ask(engine, "show_backend", backend="fresh")["pools"] == [
        {"name": "p", "total_gib": 10, "free_gib": 4, "allocated_gib": 6, "shares": 2}
    ]
    with pytest.raises(NotFound):
        ask(engine, "show_backend", backend="none")


def test_the_migrated_tables_answer_too(sqlite_url: str) -> None:
    schema.upgrade(sqlite_url)
    engine = open_engine(make_url(sqlite_url))
    try:
        assert ask(engine, "list_shares") == {"shares": [], "next_marker": None}
    finally:
        engine.dispose()
