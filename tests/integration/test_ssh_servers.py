"""The whole way of requests to shares on machines behind SSH, with workers of any group."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from tests.support import leftovers
from tests.support.deployment import Deployment
from tests.support.machines import BASE, Lan, Machine, address_of
from tests.support.pace import limit, slowed
from tests.support.services import ROOT, RedisServer, require_root_datapath, wait_until
from worker.db.core.engine import reading
from worker.db.tables.main import shares
from worker.errors import RequestFailed
from worker.helpers.compute.machines import SshOptions
from worker.systems.openstack.cloud_init import host_key_pair

BACKEND = """
[backends.machines]
mode = "flat_multi_svm"
share_driver = "generic"
compute_helper = "ordered"
network_helpers = ["flat_network"]
share_network_addresses = true
driver = {{ capacity = 30, pool_size = 8 }}
compute = {{ ssh_private_key_file = "{directory}/key", orders = "{directory}/orders", \
server_directory = "{directory}/disk" }}
"""


class Cloud:
    """Boots a machine for every order, and takes it away with its order."""

    def __init__(self, lan: Lan) -> None:
        self.lan = lan
        self.orders = lan.directory / "orders"
        self.orders.mkdir()
        self.machines: dict[str, Machine] = {}
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._work)
        self.thread.start()

    def _work(self) -> None:
        while not self.stopping.wait(0.1):
            ordered = {file.name: file for file in self.orders.glob("[!.]*")}
            for server_id in ordered.keys() - self.machines.keys():
                order = json.loads(ordered[server_id].read_text())
                self.machines[server_id] = self._boot(server_id, order)
            for server_id in self.machines.keys() - ordered.keys():
                machine = self.machines.pop(server_id)
                self.lan.members.remove(machine)
                machine.close()

    def _boot(self, server_id: str, order: dict[str, Any]) -> Machine:
        options = SshOptions(
            ssh_private_key_file=self.lan.directory / "key",
            server_directory=str(self.lan.directory / "disk"),
        )
        machine = self.lan.vacant(server_id, options, order["address"])
        machine.boot(order["user_data"])
        machine.finish_boot()
        return machine

    def close(self) -> None:
        self.stopping.set()
        self.thread.join()


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    require_root_datapath()
    with Lan.made(tmp_path) as lan:
        cloud = Cloud(lan)
        yield cloud
        cloud.close()


@pytest.fixture
def deployment(
    cloud: Cloud, tmp_path: Path, sqlite_url: str, redis_server: RedisServer
) -> Iterator[Deployment]:
    info = tmp_path / "plugins" / "ordered_machines-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ordered-machines\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[sharewright.compute_helpers]\nordered = tests.support.ordered_machines:OrderedMachines\n"
    )
    settings = BACKEND.format(directory=tmp_path)
    # A machine whose host key changed cannot be cleared either: the create ends without it.
    deployment = Deployment(
        tmp_path, sqlite_url, redis_server, settings, engine={"undo_retry_time": slowed(2.0)}
    )
    deployment.env["PYTHONPATH"] = f"{info.parent}:{ROOT}"
    try:
        yield deployment.start()
    finally:
        deployment.close()


def test_shares_on_a_machine_from_its_first_boot_to_its_end(
    deployment: Deployment, cloud: Cloud
) -> None:
    network = deployment.network(cidr=address_of(5), flat_network_subnet=f"{BASE}/28")
    asked = [
        deployment.client.submit(
            "create_share", deployment.payload(share_network_id=network, share_proto="NFS", size=1)
        )
        for _ in range(3)
    ]
    made = [deployment.client.result(one, timeout=limit()) for one in asked]
    (machine,) = cloud.machines.values()
    assert machine.address == address_of(5)
    deployment.ask("allow_access", share_id=made[0]["id"], access_to=f"{BASE}/28")
    client = cloud.lan.client()
    (location,) = made[0]["export_locations"]
    assert client.nfs(location["path"], "write", "file", data=b"kept")["ok"]
    snapshot = deployment.ask("create_snapshot", share_id=made[0]["id"])
    copy = deployment.ask("create_share", snapshot_id=snapshot["id"], share_proto="NFS", size=2)
    deployment.ask("allow_access", share_id=copy["id"], access_to=f"{BASE}/28")
    (its,) = copy["export_locations"]
    assert client.nfs(its["path"], "read", "file")["text"] == "kept"

    machine.kill()
    machine.install(host_key_pair(machine.options.ssh_private_key_file, "another")[0])
    machine.start()
    with pytest.raises(RequestFailed, match="does not have the SSH host key") as refused:
        deployment.ask("create_share", share_network_id=network, share_proto="NFS", size=1)
    assert machine.server_id in refused.value.message
    machine.kill()
    machine.install(host_key_pair(machine.options.ssh_private_key_file, machine.server_id)[0])
    machine.start()

    deployment.ask("delete_snapshot", snapshot_id=snapshot["id"])
    # The one that was refused too: its undo was refused as well, and is tried on.
    with reading(deployment.engine) as connection:
        left = connection.execute(select(shares.c.id)).scalars().all()
    assert len(left) == 5
    for share_id in left:
        deployment.ask("delete_share", share_id=share_id)
    deployment.settle()
    assert list(leftovers.of_tables(deployment.engine)) == [
        "tables: share_networks still has 1 row"
    ]
    wait_until(lambda: not cloud.machines, "the machine is gone")
