"""The data path without the engine: two tenants, real namespaces, btrfs, ganesha, NFS clients."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.leftovers import NOTHING
from tests.support.pace import limit
from tests.support.services import require_root_datapath
from tests.support.tenants import Machine, Tenant, run
from worker.drivers.generic import GenericOptions, GenericShareDriver
from worker.helpers.compute.namespace import NamespaceComputeHelper, NamespaceOptions, bridge_name
from worker.model import (
    AccessRule,
    DriverMode,
    NetworkInfo,
    NetworkKind,
    RequestContext,
    ServerStatus,
    Share,
    ShareNetwork,
    ShareServer,
    Snapshot,
)
from worker.plugin import BackendContext
from worker.systems.shell.local import LocalShell

SERVER = "10.73.0.10"
NETWORK = NetworkInfo("10.73.0.0/24", "255.255.255.0", 24, 4, "10.73.0.255", None, (SERVER,))
"""Both tenants use the same addresses: nothing but the bridges keeps them apart."""
CONTEXT = RequestContext("project")
GIB = 1 << 30


@dataclasses.dataclass
class Site:
    """One backend on this host, and what the test made on it."""

    state_dir: Path
    kind: str

    def __post_init__(self) -> None:
        backend = BackendContext("site", DriverMode.FLAT_MULTI_SVM, self.state_dir)
        self.helper = NamespaceComputeHelper(backend, NamespaceOptions())
        options = GenericOptions.model_validate({"storage": self.kind, "pool_size": 6})
        self.driver = GenericShareDriver(
            backend, options, lambda server: self.helper.shell(server) if server else LocalShell()
        )
        self.marks = [str(self.state_dir)]
        self.servers: list[ShareServer] = []
        self.shares: list[tuple[Share, ShareServer]] = []
        self.snapshots: list[tuple[Snapshot, Share, ShareServer]] = []
        self.clients: list[Tenant] = []

    def server(self) -> ShareServer:
        network = ShareNetwork(str(uuid.uuid4()), "project", NetworkKind.FLAT_POOL)
        server = ShareServer(
            str(uuid.uuid4()), "project", "site", network.id, ServerStatus.BUILDING, NETWORK
        )
        self.servers.append(server)
        self.marks += [server.id, bridge_name(network.id)]
        details = self.helper.get_share_server(CONTEXT, server, network, NETWORK, ())
        return dataclasses.replace(server, details=details)

    def share(self, server: ShareServer, *rules: tuple[str, str], size: int = 1) -> Share:
        share = Share(str(uuid.uuid4()), "project", size, "NFS", "site", "pool")
        self.shares.append((share, server))
        locations = self.driver.create_share(CONTEXT, share, server)
        share = dataclasses.replace(share, export_locations=locations)
        if rules:
            self.allow(share, server, 1, *rules)
        return share

    def allow(
        self, share: Share, server: ShareServer, generation: int, *rules: tuple[str, str]
    ) -> None:
        values = [AccessRule(str(uuid.uuid4()), "ip", to, level) for to, level in rules]
        self.driver.update_access(CONTEXT, share, server, values, generation)

    def client(self, server: ShareServer, *addresses: str) -> Tenant:
        assert server.details
        given = addresses or ("10.73.0.50/24",)
        client = Tenant.make(server.details.attributes["bridge"], *given)
        self.clients.append(client)
        self.marks += [client.namespace, client.port]
        return client

    def clear(self) -> None:
        for share, server in self.shares:
            self.driver.delete_share(CONTEXT, share, server)
        for snapshot, share, server in self.snapshots:
            self.driver.delete_snapshot(CONTEXT, snapshot, share, server)
        for server in self.servers:
            self.helper.delete_share_server(CONTEXT, server)
        self.driver.decommission(CONTEXT)
        for client in self.clients:
            client.close()

    def data(self, share: Share) -> Path:
        return self.state_dir / "storage/mounts" / share.id / "data"


@pytest.fixture(params=["btrfs", "images"])
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    require_root_datapath()
    site = Site(tmp_path, request.param)
    yield site
    site.clear()
    assert Machine.look(site.marks) == NOTHING
    assert [path for path in tmp_path.rglob("*") if path != tmp_path / "servers"] == []


def path(share: Share) -> str:
    return share.export_locations[0].path


def test_what_is_written_is_read_and_only_by_whom_it_should(site: Site) -> None:
    mine, theirs = site.server(), site.server()
    share = site.share(mine)
    client, other = site.client(mine), site.client(theirs)
    assert client.nfs(path(share), "mount")["error"] == "NOENT"

    site.allow(share, mine, 1, ("10.73.0.0/24", "rw"))
    assert client.nfs(path(share), "write", "file", data=b"hello" * 5000)["ok"]
    assert client.nfs(path(share), "read", "file")["text"] == "hello" * 5000
    assert client.nfs(path(share), "list")["names"] == ["file"]
    assert (site.data(share) / "file").read_text() == "hello" * 5000

    # The other tenant's client reaches its own server at that address, which has no such share.
    assert other.nfs(path(share), "mount")["error"] == "NOENT"
    site.helper.delete_share_server(CONTEXT, theirs)
    assert other.nfs(path(share), "mount")["error"] == "TIMEOUT"
    assert client.nfs(path(share), "read", "file")["ok"]

    site.allow(share, mine, 2, ("10.73.0.0/24", "rw"), ("10.73.0.50", "ro"))
    assert client.nfs(path(share), "write", "more", data=b"x")["error"] == "ROFS"
    assert client.nfs(path(share), "read", "file")["ok"]
    second = site.client(mine, "10.73.0.51/24")
    assert second.nfs(path(share), "write", "more", data=b"x")["ok"]

    site.allow(share, mine, 3, ("10.73.0.51", "rw"))
    assert client.nfs(path(share), "mount")["error"] == "NOENT"
    assert second.nfs(path(share), "read", "more")["text"] == "x"


def test_the_size_is_enforced_and_the_larger_one_after_extending(site: Site) -> None:
    server = site.server()
    share = site.share(server, ("10.73.0.0/24", "rw"))
    client = site.client(server)
    full = {"btrfs": "DQUOT", "images": "NOSPC"}[site.kind]

    def almost_fill(name: str, room: int) -> None:
        """Locally: filling a GiB through the test client takes most of a minute."""
        run("fallocate", "-l", str(room - 130 * 2**20), str(site.data(share) / name))

    almost_fill("first", GIB)
    assert client.nfs(path(share), "fill", "file", str(150 * 2**20))["error"] == full
    site.driver.extend_share(CONTEXT, share, 2, server)
    assert client.nfs(path(share), "fill", "more", str(20 * 2**20))["ok"]
    almost_fill("second", GIB - 20 * 2**20)
    assert client.nfs(path(share), "fill", "last", str(150 * 2**20))["error"] == full
    assert site.driver.share_size(CONTEXT, share, server) == 2


def test_a_share_from_a_snapshot_serves_the_old_content(site: Site) -> None:
    server = site.server()
    share = site.share(server, ("10.73.0.50", "rw"))
    client = site.client(server)
    assert client.nfs(path(share), "write", "file", data=b"old")["ok"]
    snapshot = Snapshot(str(uuid.uuid4()), share.id, "project", 1)
    site.snapshots.append((snapshot, share, server))
    site.driver.create_snapshot(CONTEXT, snapshot, share, server)
    assert client.nfs(path(share), "write", "file", data=b"new")["ok"]

    copy = Share(str(uuid.uuid4()), "project", 1, "NFS", "site", "pool")
    site.shares.append((copy, server))
    (location,) = site.driver.create_share_from_snapshot(CONTEXT, copy, snapshot, server)
    assert client.nfs(location.path, "mount")["error"] == "NOENT"
    site.allow(copy, server, 1, ("10.73.0.50", "rw"))
    assert client.nfs(location.path, "read", "file")["text"] == "old"
    assert client.nfs(path(share), "read", "file")["text"] == "new"
    assert client.nfs(location.path, "write", "file", data=b"own")["ok"]
    assert client.nfs(path(share), "read", "file")["text"] == "new"


def test_a_killed_server_serves_again_with_all_exports(site: Site) -> None:
    server = site.server()
    shares = [site.share(server, ("10.73.0.50", "rw")) for _ in range(3)]
    client = site.client(server)
    for share in shares:
        assert client.nfs(path(share), "write", "file", data=share.id.encode())["ok"]
    (pid,) = run("ip", "netns", "pids", f"sw-{server.id}").split()
    os.kill(int(pid), signal.SIGKILL)
    network = ShareNetwork(str(server.share_network_id), "project", NetworkKind.FLAT_POOL)
    site.helper.get_share_server(CONTEXT, server, network, NETWORK, ())
    for share in shares:
        assert client.nfs(path(share), "read", "file")["text"] == share.id
    assert len(run("ip", "netns", "pids", f"sw-{server.id}").split()) == 1


def test_a_client_notices_nothing_of_other_shares_coming_and_going(site: Site) -> None:
    server = site.server()
    share = site.share(server, ("10.73.0.50", "rw"))
    client = site.client(server)
    command = client.nfs_command(path(share), "loop", "file", "6")
    with subprocess.Popen(command, stdout=subprocess.PIPE) as loop:
        end = time.monotonic() + 5
        while time.monotonic() < end:
            other = site.share(server, ("10.73.0.51", "ro"))
            site.driver.delete_share(CONTEXT, other, server)
        answer = json.loads(loop.communicate(timeout=limit())[0])
    assert answer["failures"] == []
    assert answer["operations"] > 500


def test_many_workers_at_once_on_one_server(site: Site) -> None:
    """Eight at a time create shares; then eight bring rules for one share, in any order."""
    server = site.server()
    client = site.client(server)
    with ThreadPoolExecutor(8) as pool:
        shares = list(pool.map(lambda _: site.share(server, ("10.73.0.50", "rw")), range(16)))
        rules = [("10.73.0.50", "rw") if number % 2 else ("10.9.9.9", "rw") for number in range(41)]
        order = random.Random(7).sample(range(1, 41), 40)
        list(pool.map(lambda n: site.allow(shares[0], server, n + 1, rules[n - 1]), order))
    assert server.details
    exports = Path(server.details.attributes["ganesha"], "exports")
    assert (exports / f"{shares[0].id}.conf").read_text().startswith("# generation 41\n")
    numbers = [re.findall(r"Export_Id = \d+", file.read_text())[0] for file in exports.iterdir()]
    assert len(set(numbers)) == len(shares) == 16
    for share in shares[1:]:
        assert client.nfs(path(share), "write", "file", data=b"x")["ok"]
    assert client.nfs(path(shares[0]), "mount")["ok"] is (rules[39] == ("10.73.0.50", "rw"))
