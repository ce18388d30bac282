"""Managed share networks through the whole engine: by message, to NFS, and back to nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.real import RealDeployment
from tests.support.services import RedisServer, require_root_datapath
from tests.support.tenants import Tenant
from worker.config import this_host
from worker.helpers.compute.namespace import bridge_name

FIRST_VNI = 8_000_000 + os.getpid() % 1_000_000 * 8
SETTINGS = f"""
[backends.real]
mode = "managed_multi_svm"
share_driver = "generic"
compute_helper = "namespace"
network_helpers = ["segmented_network"]
host = "{this_host()}"
[backends.real.driver]
storage = "btrfs"
pool_size = 8
[backends.real.compute]
underlay_address = "127.0.0.1"
vxlan_port = {20_000 + os.getpid() % 20_000}
[backends.real.network.segmented_network]
segment_ids = [{FIRST_VNI}, {FIRST_VNI + 7}]
subnets = "10.88.0.0/16"
"""


@pytest.fixture
def site(tmp_path: Path, sqlite_url: str, redis_server: RedisServer) -> Iterator[RealDeployment]:
    require_root_datapath()
    site = RealDeployment(tmp_path, sqlite_url, redis_server, SETTINGS)
    try:
        yield site.start()
    finally:
        print(site.logs())
        site.close()


def test_each_tenant_is_told_its_segment_and_reads_its_own_file(site: RealDeployment) -> None:
    clients: list[Tenant] = []
    paths: list[str] = []
    try:
        for number, project in enumerate(("p1", "p2")):
            network = site.ask(
                "create_share_network", project=project, managed=True, cidr="10.79.0.0/24"
            )
            site.marks += [bridge_name(network["id"]), f"swx{FIRST_VNI + number}"]
            share = site.ask(
                "create_share", project=project, size=1, share_network_id=network["id"]
            )
            shown = site.ask("show_share_network", project=project, share_network_id=network["id"])
            assert shown["attachments"] == [
                {
                    "backend": "real",
                    "cidr": "10.79.0.0/24",
                    "gateway": "10.79.0.1",
                    "segmentation_type": "vxlan",
                    "segmentation_id": FIRST_VNI + number,
                    "mtu": 1450,
                    "bridge": bridge_name(network["id"]),
                }
            ]
            site.ask(
                "allow_access", project=project, share_id=share["id"], access_to="10.79.0.0/24"
            )
            clients.append(Tenant.make(shown["attachments"][0]["bridge"], "10.79.0.200/24"))
            paths.append(share["export_locations"][0]["path"])
        assert {path.partition(":")[0] for path in paths} == {"10.79.0.2"}
        for client, path in zip(clients, paths, strict=True):
            assert client.nfs(path, "write", "file", data=path.encode())["ok"]
        for client, path, other in zip(clients, paths, reversed(paths), strict=True):
            assert client.nfs(path, "read", "file")["text"] == path
            assert client.nfs(other, "mount")["error"] == "NOENT"
    finally:
        for client in clients:
            client.close()
    site.clear()
    assert site.left() == []
