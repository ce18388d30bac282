"""A deployment on the real data path: namespaces, btrfs, ganesha; and what is really there.

What is really there is read from the kernel, from the daemons' files and over NFS, never by the
code under test.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from tests.support import leftovers
from tests.support.deployment import Deployment
from tests.support.pace import limit
from tests.support.services import Process, RedisServer, python
from tests.support.tenants import Machine, Tenant, run
from worker.backends.assembly import assemble
from worker.config import load, this_host
from worker.db.core.engine import reading
from worker.db.networks.addresses import DatabaseAddressStore
from worker.db.tables.main import addresses, share_servers, shares
from worker.drivers.base import Decommission
from worker.helpers.compute.namespace import bridge_name
from worker.model import RequestContext

CIDR = "10.79.0.0/24"
"""Of every share network: nothing but their bridges keeps them apart."""
TENANT = "10.79.0.200"
GROUP = f"host.{this_host()}"
BACKEND = f"""
[backends.real]
mode = "flat_multi_svm"
share_driver = "generic"
compute_helper = "namespace"
network_helpers = ["flat_network"]
share_network_addresses = true
host = "{this_host()}"
driver = {{ storage = "btrfs", pool_size = 64 }}
"""


class RealDeployment(Deployment):
    """Its one backend ``real`` is this host; ends with nothing left on it."""

    def __init__(
        self,
        directory: Path,
        database_url: str,
        redis: RedisServer,
        settings: str = BACKEND,
        engine: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(directory, database_url, redis, settings, engine)
        self.state = directory / "backends" / "real"
        self.marks = [str(self.state)]

    def worker(self, name: str, *, group: str = GROUP, concurrency: int = 2, **env: str) -> Process:
        """Start a worker of this host's group."""
        return super().worker(name, group=group, concurrency=concurrency, **env)

    def forked(self, number: int, **env: str) -> Process:
        """Start workers that are up again a moment after they were killed."""
        process = Process(
            python("tests.support.forked", GROUP, str(number), str(self.directory)),
            log=self.directory / "forked.log",
            env={**self.env, **env},
        )
        self.processes["forked"] = process.start()
        return process

    def network(self, project: str = "p1", cidr: str = CIDR, **fields: Any) -> str:
        """Make a share network; its bridge is looked for at the end."""
        network_id = super().network(project, cidr, **fields)
        self.marks.append(bridge_name(network_id))
        return network_id

    def rows(self, table: Any) -> list[Any]:
        """All rows of a table."""
        with reading(self.engine) as connection:
            return list(connection.execute(select(table)).all())

    def servers(self) -> list[Any]:
        """The rows of all share servers; their namespaces are looked for at the end."""
        found = self.rows(share_servers)
        self.marks += [row.id for row in found if row.id not in self.marks]
        return found

    def exports(self, server_id: str) -> dict[str, str]:
        """What a server's daemon reads: an export file's text by its share's id."""
        directory = self.state / "servers" / server_id / "exports"
        return {file.name.removesuffix(".conf"): file.read_text() for file in directory.iterdir()}

    @contextmanager
    def tenant(self, network_id: str, address: str = TENANT) -> Iterator[Tenant]:
        """A client on a share network's bridge."""
        client = Tenant.make(bridge_name(network_id), f"{address}/24")
        try:
            yield client
        finally:
            client.close()

    def clear(self) -> None:
        """Delete everything that there is and decommission the backend."""
        self.servers()
        asked = [
            self.client.submit("delete_share", self.payload(row.project_id, share_id=row.id))
            for row in self.rows(shares)
        ]
        for operation_id in asked:
            self.client.result(operation_id, timeout=limit())
        self.settle()
        store = DatabaseAddressStore(self.database_url, rest=0)
        driver = assemble(load(self.config_path), "real", store).driver
        assert isinstance(driver, Decommission)
        driver.decommission(RequestContext(project_id=""))

    def close(self) -> None:
        """Kill every process; take away by force what a failed test left on this host."""
        with contextlib.suppress(DBAPIError):
            self.servers()
        super().close()
        take_away(self.state, self.marks)

    def left(self) -> list[str]:
        """Name what is still there: machine, files and tables."""
        return [
            *leftovers.of_run(self.marks),
            *(f"files: {file}" for file in self.state.rglob("*") if file.name != "servers"),
            *(
                sentence
                for sentence in leftovers.of_tables(self.engine)
                if "share_networks" not in sentence
            ),
        ]

    def look(self) -> Machine:
        """What of this deployment is on the machine."""
        return Machine.look(self.marks)

    def check_external(self) -> None:
        """One namespace, daemon, address set and bridge port a server; one export a share.

        As many subvolumes as shares; and nothing that no row knows of.
        """
        servers, made = self.servers(), self.rows(shares)
        own = {row.id: set[str]() for row in servers}
        for share in made:
            own[share.share_server_id].add(share.id)
        directories = {path.name for path in (self.state / "servers").iterdir()}
        assert directories == own.keys()
        held = self._held()
        assert held.keys() == own.keys()
        links = json.loads(run("ip", "-j", "-d", "link"))
        for server in servers:
            namespace = f"sw-{server.id}"
            assert _addresses(namespace) == held[server.id] == set(server.network_info["addresses"])
            assert len(held[server.id]) == 1
            bridge = bridge_name(server.share_network_id)
            ports = [one["ifname"] for one in links if one.get("master") == bridge]
            assert [port[:3] for port in ports] == ["swp"], "another server is on the bridge"
            assert self.daemons(server.id) == _pids(namespace)
            assert len(_pids(namespace)) == 1
            exports = self.exports(server.id)
            assert exports.keys() == own[server.id]
            for share_id, text in exports.items():
                assert re.findall(r"Pseudo = (\S+);", text) == [f"/shares/{share_id}"]
            links_of_ids = (self.state / "servers" / server.id / "ids").iterdir()
            assert sorted(str(link.readlink()) for link in links_of_ids) == sorted(exports)
        assert _subvolumes(self.state / "storage/pool") == {share.id for share in made}
        mounts = Machine.look([str(self.state / "storage/mounts")]).mounts
        assert {Path(mount).name for mount in mounts} == {share.id for share in made}
        assert len(Machine.look([str(self.state)]).loops) == 1

    def _held(self) -> dict[str, set[str]]:
        held: dict[str, set[str]] = {}
        for row in self.rows(addresses):
            if row.share_server_id is not None:
                held.setdefault(row.share_server_id, set()).add(row.address)
        return held

    def daemons(self, server_id: str) -> set[int]:
        """The processes that serve a share server's exports."""
        mark = str(self.state / "servers" / server_id)
        return {
            process.pid
            for process in psutil.process_iter(["cmdline", "name"])
            if process.info["name"] == "ganesha.nfsd"
            and mark in " ".join(process.info["cmdline"] or ())
        }


def take_away(state: Path, marks: Sequence[str]) -> None:
    """End what runs from ``state``, unmount it, and remove what carries one of ``marks``."""
    for process in psutil.process_iter(["cmdline"]):
        if str(state) in " ".join(process.info["cmdline"] or ()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    there = Machine.look(marks)
    commands = [
        *(("ip", "link", "del", "dev", link) for link in there.links),
        *(("ip", "netns", "del", namespace) for namespace in there.namespaces),
        *(("umount", "--lazy", target) for target in sorted(there.mounts, reverse=True)),
    ]
    for command in commands:
        # What it names may have gone with something before it.
        subprocess.run(command, capture_output=True, check=False)


def _addresses(namespace: str) -> set[str]:
    (link,) = json.loads(run("ip", "-n", namespace, "-j", "address", "show", "dev", "eth0"))
    return {one["local"] for one in link["addr_info"] if one["family"] == "inet"}


def _pids(namespace: str) -> set[int]:
    return {int(pid) for pid in run("ip", "netns", "pids", namespace).split()}


def _subvolumes(pool: Path) -> set[str]:
    listed = run("btrfs", "subvolume", "list", str(pool)).splitlines()
    return {Path(line.split(" path ")[1]).name for line in listed}
