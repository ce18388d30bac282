"""Two projects on one public share network, really: a server each, and neither reads the other."""

from __future__ import annotations

from pathlib import Path

from tests.support.real import RealDeployment
from tests.support.services import RedisServer, require_root_datapath
from worker.helpers.compute.namespace import bridge_name

CLIENTS = {"p0": "10.79.0.201", "p1": "10.79.0.202"}


def test_neither_project_reads_the_others_export(
    tmp_path: Path, sqlite_url: str, redis_server: RedisServer
) -> None:
    require_root_datapath()
    deployment = RealDeployment(tmp_path, sqlite_url, redis_server)
    try:
        deployment.role("scheduler")
        deployment.worker("real")
        deployment.role("reconciler")
        deployment.wait_reported()
        network = deployment.ask(
            "create_share_network",
            project="admins",
            admin=True,
            is_public=True,
            flat_network_ip_pool=["10.79.0.0/25"],
            flat_network_subnet="10.79.0.0/24",
        )["id"]
        deployment.marks.append(bridge_name(network))
        paths: dict[str, str] = {}
        for project, client in CLIENTS.items():
            share = deployment.ask(
                "create_share", project=project, size=1, share_network_id=network
            )
            deployment.ask("allow_access", project=project, share_id=share["id"], access_to=client)
            paths[project] = share["export_locations"][0]["path"]
        assert len(deployment.servers()) == 2
        for project, client in CLIENTS.items():
            other = next(name for name in CLIENTS if name != project)
            with deployment.tenant(network, client) as tenant:
                written = tenant.nfs(paths[project], "write", "file", data=project.encode())
                assert written["ok"], written
                assert tenant.nfs(paths[project], "read", "file")["text"] == project
                refused = tenant.nfs(paths[other], "mount")
                assert refused == {**refused, "ok": False, "error": "NOENT"}
        deployment.clear()
        assert deployment.left() == []
    finally:
        deployment.close()
