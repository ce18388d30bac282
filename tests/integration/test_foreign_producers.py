"""Producers that are not ours get our result: the share, or the failure's four parts."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from typing import Any, Final

import pytest
from sqlalchemy import select, update

from tests.support.deployment import Deployment
from tests.support.pace import limit
from tests.support.producers import (
    celery_producer,
    node_modules,
    node_producer,
    node_programs,
    produce,
)
from tests.support.services import ROOT, RedisServer, require
from worker.db.core.engine import reading, transaction
from worker.db.tables.main import share_networks, shares

CREATE: Final = "sharewright.request.create_share"


@pytest.fixture(scope="module")
def deployment(
    tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer
) -> Iterator[Deployment]:
    directory = tmp_path_factory.mktemp("foreign")
    with shared_redis.client() as client:
        client.flushall()
    made = Deployment(directory, f"sqlite:///{directory / 'sw.db'}", shared_redis)
    try:
        yield made.start()
    finally:
        made.close()


@pytest.fixture(scope="module")
def network(deployment: Deployment) -> str:
    return deployment.network("p1")


@pytest.fixture(scope="module")
def broken_network(deployment: Deployment) -> str:
    """A share network on which every create fails in its first step, and is undone."""
    network = deployment.network("p1")
    with transaction(deployment.engine) as connection:
        # What no request can write.
        connection.execute(
            update(share_networks)
            .where(share_networks.c.id == network)
            .values(flat_network_ip_pool=["10.9.9.0/33"])
        )
    return network


PRODUCERS: Final = {
    "celery 4.4": (("4.4",), {}),
    "celery 5.2": (("5.2",), {}),
    "celery 5.2, ignore_result=False": (("5.2",), {"ignore_result": False}),
    "celery 5.6": (("5.6",), {}),
    "celery 5.6, ignore_result=False": (("5.6",), {"ignore_result": False}),
    "celery as installed": (("installed",), {}),
    "celery as installed, ignore_result=False": (("installed",), {"ignore_result": False}),
    "celery-node": ((), {}),
}


@pytest.mark.parametrize("name", PRODUCERS)
def test_share_refusal_and_failure(
    deployment: Deployment, network: str, broken_network: str, name: str
) -> None:
    version, options = PRODUCERS[name]
    command = celery_producer(*version) if version else node_producer()
    asked: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        (CREATE, deployment.payload("p1", size=1, share_network_id=network, name=name), options),
        (CREATE, deployment.payload("p1", size=1, share_network_id="nowhere"), options),
        (CREATE, deployment.payload("p1", size=1, share_network_id=broken_network), options),
    ]
    made, refused, failed = produce(command, deployment.redis, asked)
    with reading(deployment.engine) as connection:
        share = connection.execute(select(shares).where(shares.c.name == name)).one()
        undone = connection.execute(
            select(shares).where(shares.c.share_network_id == broken_network)
        ).all()
    assert made["result"]["id"] == share.id, deployment.logs()
    assert made["result"]["status"] == "available"
    assert made["result"]["export_locations"] == share.export_locations
    assert refused == {
        "type": "RequestFailed",
        "args": [
            "not_found",
            "There is no share network nowhere.",
            "share_network nowhere",
            "share_network_id",
        ],
    }
    assert failed["type"] == "RequestFailed"
    code, message, resource, _field = failed["args"]
    assert {"code": code, "message": message} in [
        {"code": one.error["code"], "message": one.error["message"]} for one in undone
    ]
    assert resource


@pytest.mark.parametrize("steps", [None, list(range(10)), [0, 5]], ids=["default", "ten", "two"])
def test_every_priority_is_read(deployment: Deployment, steps: list[int] | None) -> None:
    """Celery puts a message into the Redis list of the producer's own step below its priority."""
    asked = [
        ("sharewright.request.list_shares", deployment.payload("p1"), {"priority": priority})
        for priority in range(10)
    ]
    options = {"priority_steps": steps} if steps else {}
    told = produce(celery_producer("installed"), deployment.redis, asked, options)
    assert ["shares" in one.get("result", {}) for one in told] == [True] * 10, told


def example(language: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the command of an example of the guide, and what it needs in its environment."""
    script = str(ROOT / "docs" / "examples" / f"producer.{language}")
    if language == "js":
        needed = {"NODE_PATH": str(node_modules() / "node_modules")}
        return (str(node_programs() / "node"), script), needed
    require("redis-cli")
    return (script,), {}


@pytest.mark.parametrize("language", ["js", "sh"])
def test_an_example_of_the_guide(deployment: Deployment, network: str, language: str) -> None:
    command, needed = example(language)

    def run(network_id: str, size: str) -> subprocess.CompletedProcess[str]:
        urls = (deployment.redis.url(), deployment.redis.url(1))
        return subprocess.run(
            (*command, *urls, str(uuid.uuid4()), "p1", network_id, size),
            capture_output=True,
            text=True,
            timeout=limit(),
            check=False,
            env={"PATH": os.environ["PATH"], **needed},
        )

    made = run(network, "1")
    assert made.returncode == 0, made.stderr + deployment.logs()
    with reading(deployment.engine) as connection:
        paths = [
            row.export_locations[0]["path"]
            for row in connection.execute(select(shares).where(shares.c.status == "available"))
        ]
    assert made.stdout.strip() in paths
    refused = run("nowhere", "1")
    assert refused.returncode == 1
    for part in ("not_found", "There is no share network nowhere.", "share_network nowhere"):
        assert part in refused.stderr
    refused = run(network, "0")
    assert refused.returncode == 1
    assert "invalid_request" in refused.stderr
    assert "size" in refused.stderr
