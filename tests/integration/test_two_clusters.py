"""The specification's case: two clusters on two flat networks, from one configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from netaddr import IPAddress, IPNetwork
from sqlalchemy import select

from tests.support.deployment import Deployment
from tests.support.services import ROOT, RedisServer
from worker.db.core.engine import reading
from worker.db.tables.main import share_servers

EXAMPLE = ROOT / "docs" / "examples" / "two-clusters.toml"
FLAT = {
    "a": ("10.10.0.0/24", "10.10.0.1", "10.10.0.100", "10.10.0.199"),
    "b": ("192.168.64.0/22", "192.168.64.1", "192.168.65.0", "192.168.65.255"),
}
TENANTS = 3


def test_each_cluster_gives_out_its_own_addresses(
    tmp_path: Path, sqlite_url: str, redis_server: RedisServer
) -> None:
    deployment = Deployment(tmp_path, sqlite_url, redis_server, EXAMPLE.read_text())
    try:
        deployment.role("scheduler")
        deployment.worker("both")
        deployment.role("reconciler")
        deployment.wait_reported(2)
        for site in FLAT:
            deployment.ask(
                "create_share_type", admin=True, name=f"on-{site}", extra_specs={"site": site}
            )
        for number in range(TENANTS):
            project = f"tenant-{number}"
            network = deployment.ask(
                "create_share_network",
                project=project,
                neutron_net_id=f"net-{number}",
                neutron_subnet_id=f"subnet-{number}",
            )["id"]
            for site in FLAT:
                made = deployment.ask(
                    "create_share",
                    project=project,
                    size=1,
                    share_type=f"on-{site}",
                    share_network_id=network,
                )
                assert made["backend"] == f"cluster-{site}"
        with reading(deployment.engine) as connection:
            rows = connection.execute(
                select(share_servers.c.backend, share_servers.c.network_info)
            ).all()
        for site, (cidr, gateway, first, last) in FLAT.items():
            answers = [row.network_info for row in rows if row.backend == f"cluster-{site}"]
            assert len(answers) == TENANTS
            addresses = [_only(answer.pop("addresses")) for answer in answers]
            assert len(set(addresses)) == TENANTS
            assert all(IPAddress(first) <= IPAddress(one) <= IPAddress(last) for one in addresses)
            # Two answers for one flat network differ in addresses only.
            assert all(answer == answers[0] for answer in answers)
            network = IPNetwork(cidr)
            assert answers[0]["cidr"] == cidr
            assert answers[0]["gateway"] == gateway
            assert answers[0]["netmask"] == str(network.netmask)
            assert answers[0]["prefix_length"] == network.prefixlen
            assert answers[0]["broadcast"] == str(network.broadcast)
            assert answers[0]["segmentation_type"] is None
    finally:
        deployment.close()


def _only(items: list[Any]) -> Any:
    (item,) = items
    return item
