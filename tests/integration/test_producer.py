"""The producer of the documentation, run where there is no Sharewright to import."""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest
from sqlalchemy import func, select, update

from scheduler.client import Client, NotHeard
from tests.support.deployment import Deployment
from tests.support.pace import limit
from tests.support.plain import run_plain
from tests.support.services import ROOT, RedisServer
from worker.db.core.engine import reading, transaction
from worker.db.tables.all import metadata
from worker.db.tables.main import operation_aliases, share_networks, shares

EXAMPLE: Final = ROOT / "docs" / "examples" / "producer.py"
ANSWER: Final = {"status": "SUCCESS", "result": {"shares": []}, "task_id": "three"}
FAKES: Final = """
[backends.fake]
mode = "flat_multi_svm"
share_driver = "fake"
compute_helper = "fake"
network_helpers = ["fake"]
share_network_addresses = true
"""


@pytest.fixture(scope="module")
def deployment(
    tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer
) -> Iterator[Deployment]:
    directory = tmp_path_factory.mktemp("producer")
    with shared_redis.client() as client:
        client.flushall()
    made = Deployment(directory, f"sqlite:///{directory / 'sw.db'}", shared_redis, settings=FAKES)
    try:
        yield made.start()
    finally:
        made.close()


@pytest.fixture(scope="module")
def network(deployment: Deployment) -> str:
    return deployment.network("p1")


def produce(
    deployment: Deployment,
    directory: Path,
    operation_id: str,
    network: str,
    *,
    project: str = "p1",
    size: str = "1",
) -> subprocess.CompletedProcess[str]:
    return run_plain(
        EXAMPLE,
        deployment.redis.url(),
        deployment.redis.url(1),
        operation_id,
        project,
        network,
        size,
        directory=directory,
    )


def rows(deployment: Deployment) -> dict[str, int]:
    with reading(deployment.engine) as connection:
        return {
            table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in metadata.sorted_tables
            if table.name != "counters"
        }


def failure(ended: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert ended.returncode == 1, ended.stderr
    return dict(line.split(": ", 1) for line in ended.stderr.splitlines())


def test_it_is_ten_lines_of_plain_celery() -> None:
    lines = [line for line in EXAMPLE.read_text().splitlines() if line.strip()]
    assert len(lines) == 10
    imported = [line.split()[1] for line in lines if line.startswith(("import", "from"))]
    assert imported == ["sys", "celery"]


def test_it_gets_the_export_and_again_changes_nothing(
    deployment: Deployment, network: str, tmp_path: Path
) -> None:
    operation_id = str(uuid.uuid4())
    first = produce(deployment, tmp_path, operation_id, network)
    assert first.returncode == 0, first.stderr + deployment.logs()
    with reading(deployment.engine) as connection:
        share = connection.execute(select(shares)).one()
    assert first.stdout.strip() == share.export_locations[0]["path"]
    assert share.id in first.stdout
    before = rows(deployment)
    again = produce(deployment, tmp_path, operation_id, network)
    assert again.stdout == first.stdout
    assert rows(deployment) == before


def test_a_refusal_has_code_message_object_and_field(
    deployment: Deployment, network: str, tmp_path: Path
) -> None:
    before = rows(deployment)
    ended = produce(deployment, tmp_path, str(uuid.uuid4()), "nowhere")
    assert failure(ended) == {
        "code": "not_found",
        "message": "There is no share network nowhere.",
        "object": "share_network nowhere",
        "field": "share_network_id",
    }
    ended = produce(deployment, tmp_path, str(uuid.uuid4()), network, size="0")
    assert failure(ended)["code"] == "invalid_request"
    assert failure(ended)["field"] == "size"
    ended = produce(deployment, tmp_path, str(uuid.uuid4()), network, project="somebody-else")
    assert failure(ended)["code"] == "not_found"
    assert rows(deployment) == before


def test_a_failure_after_the_undo_has_them_too(deployment: Deployment, tmp_path: Path) -> None:
    network = deployment.network("p1")
    with transaction(deployment.engine) as connection:
        # What no request can write, so that allocate_network fails for good.
        connection.execute(
            update(share_networks)
            .where(share_networks.c.id == network)
            .values(flat_network_ip_pool=["10.9.9.0/33"])
        )
    operation_id = str(uuid.uuid4())
    error = failure(produce(deployment, tmp_path, operation_id, network))
    assert error["code"] not in {"invalid_request", "not_found"}
    assert error["message"].endswith(".")
    with reading(deployment.engine) as connection:
        share = connection.execute(select(shares).where(shares.c.share_network_id == network)).one()
    assert share.status == "error"
    assert share.error["message"] == error["message"]
    before = rows(deployment)
    assert failure(produce(deployment, tmp_path, operation_id, network)) == error
    assert rows(deployment) == before


def test_a_key_sent_under_a_second_id_before_the_end_gets_the_same_result(
    deployment: Deployment, network: str
) -> None:
    deployment.processes["worker-0"].terminate()
    asked = deployment.payload("p1", size=1, share_network_id=network, idempotency_key="twice")
    first = deployment.client.submit("create_share", asked)
    second = deployment.client.submit("create_share", asked)
    with reading(deployment.engine) as connection:
        alias = connection.execute(
            select(operation_aliases.c.operation_id).where(operation_aliases.c.id == second)
        ).scalar_one()
    assert alias == first
    deployment.worker("worker-1")
    made = deployment.client.result(first, timeout=limit())
    assert deployment.client.result(second, timeout=limit()) == made


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    server = RedisServer()
    try:
        yield server.start()
    finally:
        server.close()


def test_the_client_waits_for_an_outage_and_no_longer_than_it_may(own_redis: RedisServer) -> None:
    """Of Redis, here for longer than any one call's own attempts; there is no scheduler at all."""
    client = Client(own_redis.url(), own_redis.url(1))
    payload = {"version": 1, "context": {"project_id": "p1"}}
    with pytest.raises(NotHeard, match="is the scheduler running"):
        client.submit("list_shares", payload, operation_id="one", timeout=0.5)
    own_redis.stop()
    began = time.monotonic()
    with pytest.raises(NotHeard, match="the broker is not reached"):
        client.submit("list_shares", payload, operation_id="two", timeout=3.0)
    with pytest.raises(NotHeard, match=r"was not heard of \(ConnectionError"):
        client.result("two", timeout=3.0)
    assert time.monotonic() - began >= 6.0

    def answer() -> None:
        time.sleep(2.0)
        own_redis.start()
        with own_redis.client(1) as results:
            results.set("celery-task-meta-three", json.dumps(ANSWER))

    with ThreadPoolExecutor(1) as pool:
        answered = pool.submit(answer)
        assert client.submit("list_shares", payload, operation_id="three") == "three"
        assert client.result("three") == {"shares": []}
        answered.result()
    client.close()
