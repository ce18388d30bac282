"""Two projects on one public share network: each has a share server of its own."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import func, select

from tests.support.deployment import Deployment
from tests.support.services import RedisServer, wait_until
from worker.db.core.engine import reading
from worker.db.tables.main import shares
from worker.systems.fake_world import World


def test_two_projects_on_one_public_network(
    tmp_path: Path, database_url: str, redis_server: RedisServer
) -> None:
    """100 creates at once come to two share servers, one a project, with addresses of their own."""
    deployment = Deployment(tmp_path, database_url, redis_server)
    try:
        deployment.start(workers=2)
        network = deployment.ask(
            "create_share_network",
            project="admins",
            admin=True,
            is_public=True,
            flat_network_ip_pool=["10.0.0.0/24"],
        )["id"]
        for number in range(100):
            deployment.client.send(
                "create_share",
                deployment.payload(f"p{number % 2}", size=1, share_network_id=network),
                operation_id=f"create-{number}",
            )

        def available() -> bool:
            with reading(deployment.engine) as connection:
                done = select(func.count()).where(shares.c.status == "available")
                return bool(connection.execute(done).scalar_one() == 100)

        wait_until(available, "100 shares are available")
        world = World(tmp_path / "backends" / "fake" / "world.db")
        servers = world.servers()
        assert sorted(server["project"] for server in servers) == ["p0", "p1"]
        assert len(world.calls("get_share_server", effect=True)) == 2
        addresses = {port["address"] for port in world.ports()}
        assert len(addresses) == len(world.ports()) == 2
        with reading(deployment.engine) as connection:
            on = connection.execute(
                select(shares.c.project_id, shares.c.share_server_id).distinct()
            ).all()
        assert {project for project, _ in on} == {"p0", "p1"}
        assert len({server for _, server in on}) == len(on) == 2
    finally:
        deployment.close()
