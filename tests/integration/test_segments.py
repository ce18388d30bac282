"""Segments with no other software: real namespaces, VXLAN, btrfs, ganesha and NFS clients.

Two tenants have the same CIDR, and their share servers the same addresses. What keeps them apart
is the segment, on one host and between two (each is a network namespace: tests/support/hosts.py).
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.hosts import Host
from tests.support.leftovers import NOTHING
from tests.support.services import require_root_datapath
from tests.support.tenants import Machine, Tenant, run
from worker.backends.assembly import assemble
from worker.backends.manager import ShareManager
from worker.config import from_document, this_host
from worker.db.core.engine import engine_for
from worker.db.networks.addresses import DatabaseAddressStore
from worker.db.tables.all import metadata
from worker.model import (
    AccessRule,
    NetworkKind,
    RequestContext,
    ServerStatus,
    Share,
    ShareNetwork,
    ShareServer,
)

CONTEXT = RequestContext("project")
CIDR = "10.74.0.0/24"
FIRST_VNI = 7400


@dataclasses.dataclass
class Served:
    """A tenant's share server on one host, with one share."""

    network: ShareNetwork
    server: ShareServer
    share: Share
    host: Host

    @property
    def path(self) -> str:
        return self.share.export_locations[0].path


class Site:
    """Two hosts with a backend each on one underlay, and what the test made on them."""

    def __init__(self, directory: Path, hosts: tuple[Host, Host], database_url: str) -> None:
        self.hosts = hosts
        self.managers: dict[Host, ShareManager] = {}
        self.marks = [str(directory), *(host.namespace for host in hosts)]
        self.served: list[Served] = []
        self.clients: list[Tenant] = []
        metadata.create_all(engine_for(database_url))
        store = DatabaseAddressStore(database_url, rest=3600)
        document = {
            "state_dir": str(directory),
            "backends": {host.namespace: self._backend(host) for host in hosts},
        }
        config = from_document(document, "the test")
        for host in hosts:
            self.managers[host] = ShareManager(assemble(config, host.namespace, store))

    def _backend(self, host: Host) -> dict[str, Any]:
        return {
            "mode": "managed_multi_svm",
            "host": this_host(),
            "share_driver": "generic",
            "compute_helper": "namespace",
            "network_helpers": ["segmented_network"],
            "driver": {"storage": "btrfs", "pool_size": 2},
            "compute": {
                "underlay_address": host.underlay,
                "peers": [other.underlay for other in self.hosts],
            },
            "network": {
                "segmented_network": {
                    "name": "blue",
                    "segment_ids": [FIRST_VNI, FIRST_VNI + 9],
                    "tenant_addresses": 9,
                    "tenant_prefixes": ["172.31.0.0/16"],
                }
            },
        }

    def serve(self, host: Host, network: ShareNetwork) -> Served:
        """Do what the steps of a create do."""
        manager = self.managers[host]
        server = ShareServer(
            str(uuid.uuid4()), "project", host.namespace, network.id, ServerStatus.BUILDING
        )
        self.marks.append(server.id)
        share = Share(str(uuid.uuid4()), "project", 1, "NFS", host.namespace, "pool")
        served = Served(network, server, share, host)
        self.served.append(served)
        with host.entered():
            info = manager.allocate_network(CONTEXT, server, network)
            served.server = server = dataclasses.replace(server, network_info=info)
            details = manager.get_share_server(CONTEXT, server, network, info, ())
            served.server = server = dataclasses.replace(server, details=details)
            locations = manager.create_share(CONTEXT, share, None, server)
            served.share = dataclasses.replace(share, export_locations=locations)
            rule = AccessRule(str(uuid.uuid4()), "ip", CIDR, "rw")
            manager.update_access(CONTEXT, share, server, [rule], 1)
        return served

    def client(self, at: Served) -> Tenant:
        """A client of the tenant on the segment's bridge on that host; all have one address."""
        assert at.server.details
        with at.host.entered():
            client = Tenant.make(at.server.details.attributes["bridge"], "10.74.0.5/24")
        run("ip", "-n", client.namespace, "link", "set", "dev", "eth0", "mtu", "1450")
        self.clients.append(client)
        self.marks.append(client.namespace)
        return client

    def remove(self, served: Served) -> None:
        manager = self.managers[served.host]
        with served.host.entered():
            manager.delete_share(CONTEXT, served.share, served.server)
            manager.delete_share_server(CONTEXT, served.server)
            manager.deallocate_network(CONTEXT, served.server)

    def clear(self) -> None:
        for served in self.served:
            self.remove(served)
        for host in self.hosts:
            driver: Any = self.managers[host].backend.driver
            driver.decommission(CONTEXT)
        for client in self.clients:
            client.close()


@pytest.fixture
def site(tmp_path: Path, sqlite_url: str) -> Iterator[Site]:
    require_root_datapath()
    hosts = Host.pair()
    site = Site(tmp_path, hosts, sqlite_url)
    try:
        yield site
    finally:
        site.clear()
        left = [host.links() for host in hosts]
        for host in hosts:
            host.close()
    assert left == [{"lo", "eth1"}] * 2
    assert Machine.look(site.marks) == NOTHING


def a_network() -> ShareNetwork:
    return ShareNetwork(str(uuid.uuid4()), "project", NetworkKind.MANAGED, cidr=CIDR)


def segment(served: Served) -> tuple[str | None, int | None]:
    info = served.server.network_info
    assert info
    return info.segmentation_type, info.segmentation_id


def addresses(served: Served) -> tuple[str, ...]:
    assert served.server.network_info
    return served.server.network_info.addresses


def check_each_reads_its_own(clients: list[Tenant], served: list[Served]) -> None:
    """Each client writes a file and reads it back; at the same address it finds no other's."""
    for client, mine in zip(clients, served, strict=True):
        text = f"of share network {mine.network.id} " * 1000
        assert client.nfs(mine.path, "write", "file", data=text.encode())["ok"]
    for client, mine in zip(clients, served, strict=True):
        assert client.nfs(mine.path, "list")["names"] == ["file"]
        text = client.nfs(mine.path, "read", "file")["text"]
        assert text == f"of share network {mine.network.id} " * 1000
        for other in served:
            if other is not mine:
                assert client.nfs(other.path, "mount")["error"] == "NOENT"


def test_two_tenants_with_the_same_addresses_on_one_host(site: Site) -> None:
    here, there = site.hosts
    served = [site.serve(here, a_network()) for _ in range(2)]
    assert [addresses(one) for one in served] == [("10.74.0.10",)] * 2
    assert [segment(one) for one in served] == [("vxlan", FIRST_VNI), ("vxlan", FIRST_VNI + 1)]
    assert there.links() == {"lo", "eth1"}
    clients = [site.client(one) for one in served]
    check_each_reads_its_own(clients, served)
    namespace = f"sw-{served[0].server.id}"
    assert "mtu 1450" in run("ip", "-n", namespace, "link", "show", "dev", "eth0")
    routes = run("ip", "-n", namespace, "route")
    assert "default via 10.74.0.1 dev eth0" in routes
    assert "172.31.0.0/16 via 10.74.0.1 dev eth0" in routes


def test_two_tenants_with_the_same_addresses_over_vxlan(site: Site) -> None:
    here, there = site.hosts
    networks = [a_network(), a_network()]
    far = [site.serve(here, network) for network in networks]
    near = [site.serve(there, network) for network in networks]
    assert [addresses(one) for one in far] == [("10.74.0.10",)] * 2
    assert [addresses(one) for one in near] == [("10.74.0.11",)] * 2
    assert [segment(one) for one in near] == [segment(one) for one in far]

    clients = [site.client(one) for one in near]
    check_each_reads_its_own(clients, far)
    check_each_reads_its_own(clients, near)

    # Nothing but the underlay leads there.
    run("ip", "-n", here.namespace, "link", "set", "dev", "eth1", "down")
    assert clients[0].nfs(far[0].path, "mount")["error"] == "TIMEOUT"
    assert clients[0].nfs(near[0].path, "mount")["ok"]
    run("ip", "-n", here.namespace, "link", "set", "dev", "eth1", "up")
    assert clients[0].nfs(far[0].path, "mount")["ok"]

    # One tenant's server goes, the other's at the same address is not disturbed.
    site.remove(far[0])
    assert clients[0].nfs(far[0].path, "mount")["error"] == "TIMEOUT"
    assert clients[1].nfs(far[1].path, "read", "file")["ok"]
    left = {link for link in here.links() if link.startswith(("swx", "swb"))}
    assert left == {f"swx{FIRST_VNI + 1}", *(link for link in left if link.startswith("swb"))}
    assert len(left) == 2


def test_a_host_that_comes_or_goes_is_told_to_the_others(site: Site) -> None:
    here, there = site.hosts
    served = site.serve(here, a_network())
    tunnel = f"swx{FIRST_VNI}"

    def flooded() -> list[str]:
        entries = run("bridge", "-n", here.namespace, "fdb", "show", "dev", tunnel).splitlines()
        return [line.split()[2] for line in entries if line.startswith("00:00:00:00:00:00")]

    assert flooded() == [there.underlay]
    flood = ("bridge", "-n", here.namespace, "fdb", "append", "00:00:00:00:00:00", "dev", tunnel)
    run(*flood, "dst", "10.99.0.77")
    assert len(flooded()) == 2
    info = served.server.network_info
    assert info
    with here.entered():
        site.managers[here].get_share_server(CONTEXT, served.server, served.network, info, ())
    assert flooded() == [there.underlay]
