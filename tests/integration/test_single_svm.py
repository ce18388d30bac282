"""The predefined server through the whole engine, on the real data path."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.real import RealDeployment
from tests.support.services import RedisServer, require_root_datapath
from tests.support.tenants import Tenant, run
from tests.support.views import DENIED, FULL, READ_ONLY, NfsView
from worker.config import this_host
from worker.db.tables.main import share_servers

SERVER, WRITER, READER = "10.78.0.1", "10.78.0.50", "10.78.0.51"


@pytest.fixture
def bridge() -> Iterator[str]:
    """The network that the operator has made in advance."""
    require_root_datapath()
    name = f"swt{uuid.uuid4().hex[:8]}"
    run("ip", "link", "add", "name", name, "type", "bridge")
    run("ip", "link", "set", "dev", name, "up")
    try:
        yield name
    finally:
        run("ip", "link", "del", "dev", name)


@pytest.fixture
def server(bridge: str) -> Iterator[Tenant]:
    """The namespace that has the predefined server's address."""
    predefined = Tenant.make(bridge, f"{SERVER}/24")
    try:
        yield predefined
    finally:
        predefined.close()


@pytest.fixture
def site(
    tmp_path: Path, sqlite_url: str, redis_server: RedisServer, server: Tenant
) -> Iterator[RealDeployment]:
    settings = f"""
[backends.real]
mode = "single_svm"
share_driver = "generic"
host = "{this_host()}"
[backends.real.driver]
storage = "btrfs"
pool_size = 8
service_address = "{SERVER}"
service_namespace = "{server.namespace}"
"""
    site = RealDeployment(tmp_path, sqlite_url, redis_server, settings)
    try:
        yield site.start()
    finally:
        print(site.logs())
        site.close()


def test_a_share_on_the_predefined_server(site: RealDeployment, bridge: str) -> None:
    share = site.ask("create_share", size=1)
    assert share["status"] == "available"
    assert share["share_server_id"] is None
    assert share["export_locations"][0]["path"] == f"{SERVER}:/shares/{share['id']}"
    assert site.rows(share_servers) == []
    view = NfsView(bridge, 24)
    try:
        assert view.read(WRITER, share) == DENIED
        site.ask("allow_access", share_id=share["id"], access_to=WRITER)
        rule = site.ask("allow_access", share_id=share["id"], access_to=READER, access_level="ro")
        assert view.write(WRITER, share, "first") == ""
        assert view.read(READER, share) == "first"
        assert view.write(READER, share, "no") == READ_ONLY
        site.ask("deny_access", share_id=share["id"], access_id=rule["id"])
        assert view.read(READER, share) == DENIED

        snapshot = site.ask("create_snapshot", share_id=share["id"])
        assert view.write(WRITER, share, "second") == ""
        copy = site.ask("create_share", size=1, snapshot_id=snapshot["id"])
        site.ask("allow_access", share_id=copy["id"], access_to=WRITER)
        assert view.read(WRITER, copy) == "first"
        assert view.read(WRITER, share) == "second"

        assert view.fill(WRITER, share, 1) == FULL
        site.ask("extend_share", share_id=share["id"], new_size=2)
        assert view.write(WRITER, share, "more") == ""
        assert view.fill(WRITER, share, 2) == FULL

        # A second server of this kind is not made, and what is deleted takes nobody along.
        site.ask("delete_share", share_id=copy["id"])
        assert view.read(WRITER, share) == "more"
        assert view.read(WRITER, copy) == DENIED
    finally:
        view.close()
    site.ask("delete_snapshot", snapshot_id=snapshot["id"])
    site.clear()
    assert site.left() == []
