"""Workers killed inside the neutron helper, at each of its failpoints, on a real Neutron."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.matrix.points import all_points
from tests.openstack.cloud import OpenStack
from tests.support.deployment import Deployment
from tests.support.leftovers import of_tables
from tests.support.pace import limit
from tests.support.services import RedisServer
from worker.helpers.network.neutron.managed import DEVICE_OWNER

# The first test of a checkout installs OpenStack and prepares its tables.
pytestmark = pytest.mark.whole

MAKING = ("neutron.after_network", "neutron.after_subnet", "neutron.after_router")
PORTS = ("neutron.after_port",)
REMOVING = ("neutron.after_port_deleted", "neutron.after_leaving", "neutron.after_router_deleted")
ACTIONS = ("kill", "raise")


def test_every_failpoint_is_tried() -> None:
    named = {point for point in all_points() if point.startswith("neutron.")}
    assert named == {*MAKING, *PORTS, *REMOVING}


def arm(tokens: Path, points: tuple[str, ...]) -> None:
    for number, action in enumerate(ACTIONS):
        for point in points:
            new = tokens / "new"
            new.write_text(action)
            new.rename(tokens / f"{point}@{number}")


def test_killed_inside_the_helper(
    tmp_path: Path, postgres_url: str, redis_server: RedisServer, openstack: OpenStack
) -> None:
    """One managed share network a fault: made whole, then removed whole, by other attempts."""
    options = "\n".join(f'{name} = "{value}"' for name, value in openstack.auth().items())
    settings = (
        '[backends.neutron]\nmode = "managed_multi_svm"\nshare_driver = "fake"\n'
        'compute_helper = "fake"\nnetwork_helpers = ["neutron"]\n'
        f'[backends.neutron.network.neutron]\n{options}\nbinding_host = "host1"\n'
    )
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    with openstack.connect() as admin:
        # Neutron's first requests must not come at once: it reads its policies meanwhile.
        admin.network.delete_network(admin.network.create_network(name="first"))

    deployment = Deployment(tmp_path, postgres_url, redis_server, settings)
    try:
        deployment.start(concurrency=3, SHAREWRIGHT_FAILPOINT_TOKENS=str(tokens))
        client, payload = deployment.client, deployment.payload
        number = len(ACTIONS) * len(MAKING + PORTS)
        networks = [
            deployment.ask("create_share_network", managed=True, cidr=f"10.60.{one}.0/26")["id"]
            for one in range(number)
        ]
        arm(tokens, MAKING + PORTS)
        asked = [
            client.submit("create_share", payload(size=1, share_network_id=network))
            for network in networks
        ]
        made = [client.result(one, timeout=limit()) for one in asked]
        assert list(tokens.iterdir()) == [], "some faults never struck"
        with openstack.connect() as admin:
            ports = list(admin.network.ports(device_owner=DEVICE_OWNER))
            assert {port.device_id for port in ports} == {one["share_server_id"] for one in made}
            assert len(ports) == number
            names = [network.name for network in admin.network.networks()]
            wanted = sorted(f"sharewright-{network}" for network in networks)
            assert sorted(name for name in names if name.startswith("sharewright-")) == wanted
            arm(tokens, REMOVING)
            for share in made:
                client.submit("delete_share", payload(share_id=share["id"]))
            deployment.settle()
            assert list(tokens.iterdir()) == [], "some faults never struck"
            assert list(admin.network.ports(device_owner=DEVICE_OWNER)) == []
            left = [*admin.network.networks(), *admin.network.routers(), *admin.network.subnets()]
            assert [thing.name for thing in left if thing.name.startswith("sharewright-")] == []
        leftovers = [line for line in of_tables(deployment.engine) if "share_networks" not in line]
        assert [line for line in leftovers if "share_types" not in line] == []
    except BaseException:
        print(deployment.logs())
        raise
    finally:
        deployment.close()
