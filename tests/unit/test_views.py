"""What producers are shown: what the views list, and nothing else of the tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from scheduler.queries.reads import READS
from scheduler.requests.base import parse
from scheduler.requests.verbs import VERBS
from tests.support.engine import EngineBench
from worker.db import views
from worker.db.core.engine import reading, transaction
from worker.db.tables.main import share_servers
from worker.db.views import View

PLANTED = "planted-in-a-new-column"
MANAGEMENT = {
    "ssh_address": "192.0.2.77",
    "ssh_port": "2222",
    "ssh_user": "the-management-user",
    "ssh_host_key": "ssh-ed25519 AAAAmanagement",
    "namespace": "sw-the-namespace",
    "mount_root": "/srv/the/host/path",
}
ALL = {name: view for name, view in vars(views).items() if isinstance(view, View)}


def ask(bench: EngineBench, verb: str, roles: tuple[str, ...] = (), **fields: Any) -> Any:
    context = {"project_id": "p1", "roles": roles}
    request = parse(VERBS[verb], {"version": 1, "context": context, **fields})
    with reading(bench.engine) as connection:
        return READS[verb](connection, request, bench.config)


def everything(bench: EngineBench) -> dict[str, Any]:
    """Make one object of each kind; return all documents that a tenant and others are shown."""
    create = bench.create()
    bench.drive()
    share = bench.share_row()
    access = bench.ask("allow_access", share_id=share.id, access_to="10.0.0.1")
    snapshot = bench.ask("create_snapshot", share_id=share.id)
    bench.drive()
    service = bench.ask(
        "create_security_service", type="ldap", name="directory", server="10.0.0.2", domain="d"
    )
    share_type = bench.ask("create_share_type", name="gold", extra_specs={})
    network = bench.ask("create_share_network", name="n", flat_network_ip_pool=["10.9.0.0/24"])
    begun = (create, access, snapshot, service, share_type, network)
    shown: dict[str, Any] = {f"result of {one}": bench.results[one] for one in begun}
    named = {
        "show_share": {"share_id": share.id},
        "list_access": {"share_id": share.id},
        "show_snapshot": {"snapshot_id": bench.results[snapshot]["id"]},
        "show_share_network": {"share_network_id": bench.network_id},
        "show_share_type": {"share_type": "gold"},
        "show_share_server": {"share_server_id": share.share_server_id},
        "show_security_service": {"security_service_id": bench.results[service]["id"]},
        "show_operation": {"operation_id": create},
        "show_backend": {"backend": "fake"},
    }
    lists = {name: {} for name in READS if name.startswith("list_") and name not in named}
    for verb, fields in {**named, **lists}.items():
        shown[verb] = ask(bench, verb, **fields)
    shown["as administrator"] = [
        ask(bench, verb, ("admin",), **fields) for verb, fields in {**named, **lists}.items()
    ]
    return shown


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_view_shows_its_list_only(name: str) -> None:
    view = ALL[name]
    assert [column.key for column in view.columns] == list(view.names)
    assert len(set(view.names)) == len(view.names)


def test_a_new_column_of_any_table_is_in_no_document(tmp_path: Path) -> None:
    """In a process of its own, where every table has one more column from the very start."""
    script = f"""
import json
import pathlib
from sqlalchemy import Column, Text
from worker.db.tables.all import metadata
for table in metadata.sorted_tables:
    table.append_column(Column("planted", Text, server_default={PLANTED!r}))
from tests.support.engine import EngineBench
from tests.unit.test_views import everything
with EngineBench(pathlib.Path({str(tmp_path)!r}), "sqlite:///{tmp_path}/planted.db") as bench:
    print(json.dumps(everything(bench)))
    assert bench.rows("shares")[0].planted == {PLANTED!r}
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) > len(READS) // 2
    assert "planted" not in done.stdout


def test_a_tenant_sees_nothing_of_the_management_side(tmp_path: Path, sqlite_url: str) -> None:
    with EngineBench(tmp_path, sqlite_url) as bench:
        everything(bench)
        server = bench.share_row().share_server_id
        details = {"server_id": "the-external-id", "addresses": ["10.0.0.9"]}
        with transaction(bench.engine) as connection:
            info = connection.execute(
                select(share_servers.c.network_info).where(share_servers.c.id == server)
            ).scalar_one()
            connection.execute(
                update(share_servers).values(
                    server_id="the-external-id",
                    details={**details, "attributes": MANAGEMENT},
                    network_info={**info, "attributes": {"domain": "the-domain"}},
                )
            )
        shown = {
            verb: ask(bench, verb, **fields)
            for verb, fields in {
                "show_share_server": {"share_server_id": server},
                "list_share_servers": {},
                "show_share_network": {"share_network_id": bench.network_id},
                "list_operations": {},
                "show_share": {"share_id": bench.share_row().id},
            }.items()
        }
        text = json.dumps(shown)
        for secret in (*MANAGEMENT.values(), "the-external-id", "the-domain", "worker"):
            assert secret not in text
        assert shown["show_share_server"]["network_info"]["addresses"] == info["addresses"]
        whole = ask(bench, "show_share_server", ("admin",), share_server_id=server)
        assert whole["details"]["attributes"] == MANAGEMENT
        assert whole["server_id"] == "the-external-id"
        listed = ask(bench, "list_share_servers", ("admin",))["share_servers"]
        assert listed == [whole]
