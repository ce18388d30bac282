"""Audits of what is real: namespaces, links, bridges, file servers, subvolumes, and Neutron's."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.openstack.cloud import OpenStack
from tests.support.audits import CONTEXT, AuditBench
from tests.support.leftovers import NOTHING
from tests.support.real import BACKEND, take_away
from tests.support.services import require_root_datapath, wait_until
from tests.support.tenants import Machine, run
from worker.drivers.base import Decommission
from worker.errors import Conflict
from worker.helpers.compute.namespace import bridge_name, namespace_name
from worker.helpers.network.neutron.managed import DEVICE_OWNER
from worker.model import NetworkKind, Share, ShareNetwork, ShareServer
from worker.systems.exports.ganesha import Ganesha
from worker.systems.network.bridges import short
from worker.systems.shell.local import LocalShell

PLANTED = 30


class Host:
    """This host as the backend ``real``, and what carries the marks of a test's things."""

    def __init__(self, bench: AuditBench) -> None:
        self.bench = bench
        self.state = bench.config.state_dir / "backends" / "real"
        self.marks = [str(self.state)]

    def network(self) -> ShareNetwork:
        made = self.bench.network(flat_network_ip_pool=("10.79.0.0/24",))
        self.marks.append(bridge_name(made.id))
        return made

    def server(self, network: ShareNetwork, *, row: bool = True) -> ShareServer:
        made = self.bench.server(network, row=row)
        self.marks += [made.id, short(made.id)]
        return made

    def machine(self) -> Machine:
        return Machine.look(self.marks)

    def repair(self) -> dict[str, Any]:
        self.bench.audit()
        self.bench.age()
        return self.bench.audit(repair=True)


@pytest.fixture
def host(tmp_path: Path, sqlite_url: str) -> Iterator[Host]:
    require_root_datapath()
    with AuditBench(tmp_path, sqlite_url, "real", BACKEND) as bench:
        made = Host(bench)
        try:
            yield made
        finally:
            driver = bench.manager.backend.driver
            assert isinstance(driver, Decommission)
            with contextlib.suppress(Conflict):  # of a test that failed
                driver.decommission(CONTEXT)
            take_away(made.state, made.marks)
        wait_until(lambda: made.machine() == NOTHING, "the host is as it was")


def assert_gone(machine: Machine, directory: Path, *servers: ShareServer) -> None:
    for server in servers:
        assert not any(server.id in one for one in (*machine.namespaces, *machine.processes))
        assert f"swp{short(server.id)}" not in machine.links
        assert not (directory / server.id).exists()


def test_share_servers_of_every_half_made_kind(host: Host) -> None:
    """Whole ones, and what is left of one in each way that it can be cut short."""
    live_network, gone_network = host.network(), host.network()
    live = [host.server(live_network) for _ in range(2)]
    before = host.machine()
    whole, addressed, linked, served, named = (host.server(gone_network) for _ in range(5))
    alone = host.network()
    run("ip", "link", "add", "name", bridge_name(alone.id), "type", "bridge")
    run("ip", "link", "set", "dev", bridge_name(alone.id), "alias", alone.id)
    directory = host.state / "servers"
    # Of this one only the directory and its address are left.
    host.bench.manager.backend.compute.delete_share_server(CONTEXT, addressed)  # type: ignore[union-attr] # it has one
    (directory / addressed.id).mkdir()
    # Of this one the namespace's name is gone, and its daemon keeps the rest.
    run("ip", "netns", "del", namespace_name(served.id))
    # Of this one the link only: its other end is in a namespace that has another name.
    end = f"swq{short(linked.id)}"
    run("ip", "-n", namespace_name(linked.id), "link", "set", "dev", "eth0", "down")
    run("ip", "-n", namespace_name(linked.id), "link", "set", "dev", "eth0", "name", end)
    run("ip", "-n", namespace_name(linked.id), "link", "set", "dev", end, "netns", "1")
    # Of this one no file server, and no directory.
    Ganesha(LocalShell(), str(directory / named.id), "0.0.0.0").stop()
    shutil.rmtree(directory / named.id)
    # Somebody else's, by name or nature such as ours.
    foreign = host.server(host.network(), row=False)
    strange = f"sw-{uuid.uuid4()}"
    host.marks.append(strange)
    run("ip", "netns", "add", strange)
    kept = host.machine()
    host.bench.forget(whole, addressed, linked, served, named)
    first = host.bench.audit(repair=True)
    assert first["removed"] == 0
    kinds = {(row.kind, row.owner_id) for row in host.bench.findings()}
    assert {
        *((kind, whole.id) for kind in ("namespace", "port", "NFS server", "directory", "address")),
        *((kind, addressed.id) for kind in ("directory", "address")),
        *((kind, linked.id) for kind in ("namespace", "port", "NFS server", "directory")),
        *((kind, served.id) for kind in ("NFS server", "directory", "address")),
        *((kind, named.id) for kind in ("namespace", "port", "address")),
        ("bridge", gone_network.id),
        ("bridge", alone.id),
    } <= kinds
    assert {row.owner_id for row in host.bench.findings("unknown")} >= {
        foreign.id,
        strange.removeprefix("sw-"),
    }
    host.bench.age()
    done = host.bench.audit(repair=True)
    assert (done["orphan"], done["missing"]) == (0, 0), host.bench.findings()
    after = host.machine()
    assert_gone(after, directory, whole, addressed, linked, served, named)
    assert not {bridge_name(network.id) for network in (gone_network, alone)} & set(after.links)
    assert strange in after.namespaces
    assert namespace_name(foreign.id) in after.namespaces
    for kind in ("namespaces", "links", "processes"):
        assert getattr(before, kind) <= getattr(after, kind) <= getattr(kept, kind)
    for server in live:
        assert LocalShell(namespace_name(server.id)).run(["true"]).exit_code == 0
    host.bench.forget(*live)
    host.repair()


def test_thirty_servers_and_thirty_subvolumes(host: Host) -> None:
    """Orphans beside as many of somebody else's; their exports stand on a server that lives."""
    network = host.network()
    live = host.server(network)
    served = host.bench.share(live, "btrfs")
    compute = host.bench.manager.backend.compute
    assert compute is not None
    driver = host.bench.manager.backend.driver

    def share() -> Share:
        made = Share(str(uuid.uuid4()), "p1", 1, "NFS", "real", "btrfs")
        driver.create_share(CONTEXT, made, live)
        return made

    orphans = [share() for _ in range(PLANTED)]
    foreign = [share() for _ in range(PLANTED)]
    with ThreadPoolExecutor(4) as threads:
        servers = list(threads.map(lambda _: host.server(network), range(PLANTED)))
    strangers = [f"sw-{uuid.uuid4()}" for _ in range(PLANTED)]
    host.marks += strangers
    for name in strangers:
        run("ip", "netns", "add", name)
    for made in orphans:
        host.bench.add_tombstone("share", made.id)
    host.bench.forget(*servers)
    pool = host.state / "storage/pool/shares"
    assert len(list(pool.iterdir())) == 2 * PLANTED + 1
    host.bench.audit()
    # A subvolume, its mount and its export each; a namespace, port, daemon, directory, address.
    found = [row.kind for row in host.bench.findings()]
    assert {kind: found.count(kind) for kind in set(found)} == dict.fromkeys(
        ("share", "mount", "export", "namespace", "port", "NFS server", "directory", "address"),
        PLANTED,
    )
    host.bench.age()
    done = host.bench.audit(repair=True)
    assert (done["orphan"], done["not_removed"], done["postponed"]) == (0, 0, 0)
    assert done["removed"] == 8 * PLANTED
    kept = {served.id, *(one.id for one in foreign)}
    assert {path.name for path in pool.iterdir()} == kept
    assert {path.name for path in (host.state / "storage/mounts").iterdir()} == kept
    exports = host.state / "servers" / live.id / "exports"
    assert {path.name.removesuffix(".conf") for path in exports.iterdir()} == kept
    after = host.machine()
    assert set(strangers) <= set(after.namespaces)
    assert {name for name in after.namespaces if name not in strangers} == {namespace_name(live.id)}
    for made in foreign:
        driver.delete_share(CONTEXT, made, live)
    host.bench.forget(served, live)
    host.repair()


NEUTRON = """
[backends.cloud]
mode = "managed_multi_svm"
share_driver = "fake"
compute_helper = "fake"
network_helpers = ["neutron"]
[backends.cloud.network.neutron]
managed_cidrs = ["10.65.0.0/16"]
"""


def test_ports_and_networks_of_a_real_neutron(
    tmp_path: Path, sqlite_url: str, openstack: OpenStack
) -> None:
    login = "".join(f'{name} = "{value}"\n' for name, value in openstack.auth().items())
    with (
        openstack.connect() as admin,
        AuditBench(tmp_path, sqlite_url, "cloud", NEUTRON + login) as bench,
    ):
        neutron = admin.network
        helper = bench.manager.backend.networks[0]
        tenant = neutron.create_network(name=f"tenant-{uuid.uuid4()}")
        subnet = neutron.create_subnet(network_id=tenant.id, cidr="10.31.0.0/24", ip_version=4)
        network = bench.network(
            kind=NetworkKind.NEUTRON,
            flat_network_ip_pool=(),
            neutron_net_id=tenant.id,
            neutron_subnet_id=subnet.id,
        )
        managed = bench.network(kind=NetworkKind.MANAGED, flat_network_ip_pool=())
        live = bench.server(network)
        gone = [bench.server(network) for _ in range(3)]
        on_managed = bench.server(managed)
        # POSTs that land after their server's deallocation: neither tags nor anything else.
        late = [_late_port(neutron, tenant.id, subnet.id) for _ in range(PLANTED - 4)]
        foreign = [
            neutron.create_port(network_id=tenant.id, name=f"vm-{number}").id
            for number in range(PLANTED - 1)
        ]
        stranger = str(uuid.uuid4())  # another installation's server
        foreign.append(_port(neutron, tenant.id, subnet.id, stranger))
        bench.forget(*gone, on_managed)
        for server_id in late:
            bench.add_tombstone("share_server", server_id)
        first = bench.audit(repair=True)
        assert first["removed"] == 0
        kinds = [row.kind for row in bench.findings() if row.part == "network neutron"]
        assert (kinds.count("port"), kinds.count("network")) == (PLANTED, 1)
        assert {row.owner_id for row in bench.findings("unknown")} == {stranger}
        bench.age()
        done = bench.audit(repair=True)
        assert (done["orphan"], done["missing"]) == (0, 0), bench.findings()
        mine = {port.device_id for port in neutron.ports(network_id=tenant.id)}
        assert live.id in mine
        assert mine.isdisjoint({*late, *(server.id for server in gone)})
        there = {port.id for port in neutron.ports(network_id=tenant.id)}
        assert set(foreign) <= there
        assert len(there) == PLANTED + 1
        assert not list(neutron.networks(name=f"sharewright-{managed.id}"))
        assert not [one for one in neutron.routers() if managed.id in one.name]
        bench.manager.delete_share_server(CONTEXT, live)
        helper.deallocate_network(CONTEXT, live)
        for port in foreign:
            neutron.delete_port(port)
        neutron.delete_network(tenant.id)


def _port(neutron: Any, network_id: str, subnet_id: str, server_id: str) -> str:
    made = neutron.create_port(
        network_id=network_id,
        fixed_ips=[{"subnet_id": subnet_id}],
        name=f"sharewright-{server_id}-0",
        device_id=server_id,
        device_owner=DEVICE_OWNER,
    )
    return str(made.id)


def _late_port(neutron: Any, network_id: str, subnet_id: str) -> str:
    server_id = str(uuid.uuid4())
    _port(neutron, network_id, subnet_id, server_id)
    return server_id
