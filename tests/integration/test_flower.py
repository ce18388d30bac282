"""What Flower shows: every step by name and operation id, nothing half-way, no secret."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.deployment import Deployment
from tests.support.pace import limit
from tests.support.services import Process, RedisServer, free_port, python, wait_until
from worker.errors import RequestFailed
from worker.systems.fake_world import World

SECRET = "correct-horse-battery-staple"
DONE, ROLLED_BACK = 50, 10
STEPS = ("allocate_network", "get_share_server", "create_share")
COMPENSATIONS = ("delete_share_server", "deallocate_network")
ENDED = {"SUCCESS", "FAILURE"}


@pytest.fixture
def deployment(tmp_path: Path, sqlite_url: str, redis_server: RedisServer) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path, sqlite_url, redis_server)
    try:
        yield deployment
    finally:
        deployment.close()


def fetch(port: int, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=limit()) as answer:
        return json.load(answer)


def start_flower(deployment: Deployment) -> tuple[Process, int]:
    port = free_port()
    process = Process(
        python("scheduler.cli", "flower", "--", "--address=127.0.0.1", f"--port={port}"),
        log=deployment.directory / "flower.log",
        env={**deployment.env, "FLOWER_UNAUTHENTICATED_API": "1"},
    )
    deployment.processes["flower"] = process

    def answers() -> bool:
        try:
            return len(fetch(port, "/api/workers")) > 0
        except OSError:
            return False

    process.start(answers)
    return process, port


def run_operations(deployment: Deployment) -> tuple[list[str], list[str]]:
    """50 that end well and 10 that are rolled back, each alone on its share network."""
    world = World(deployment.directory / "backends" / "fake" / "world.db")
    network = deployment.network(project=f"p-{SECRET[:3]}", description=SECRET)
    done, undone = [], []
    for number in range(DONE):
        fields = {"size": 1, "share_network_id": network, "metadata": {"password": SECRET}}
        payload = deployment.payload(f"p-{SECRET[:3]}", description=SECRET, **fields)
        done.append(deployment.client.submit("create_share", payload))
        if number == 0:
            deployment.client.result(done[0], timeout=limit())
    for number in range(ROLLED_BACK):
        alone = deployment.network(cidr=f"10.2.{number}.0/24")
        world.arm("create_share", "fatal", match=alone)
        payload = deployment.payload(size=1, share_network_id=alone)
        undone.append(deployment.client.submit("create_share", payload))
    for operation_id in done:
        deployment.client.result(operation_id, timeout=limit())
    for operation_id in undone:
        with pytest.raises(RequestFailed):
            deployment.client.result(operation_id, timeout=limit())
    deployment.settle()
    return done, undone


def test_flower_shows_steps_and_compensations(deployment: Deployment) -> None:
    deployment.start()
    _, port = start_flower(deployment)
    done, undone = run_operations(deployment)
    expected = len(STEPS) * (DONE + ROLLED_BACK) + len(COMPENSATIONS) * ROLLED_BACK

    def ended() -> dict[str, Any]:
        tasks: dict[str, Any] = fetch(port, "/api/tasks?limit=10000")
        return {uuid: task for uuid, task in tasks.items() if task["state"] in ENDED}

    def steps(tasks: dict[str, Any]) -> list[dict[str, Any]]:
        names = {f"sharewright.{name}" for name in (*STEPS, *COMPENSATIONS)}
        return [task for task in tasks.values() if task["name"] in names]

    wait_until(lambda: len(steps(ended())) >= expected, "Flower has all steps")
    tasks = fetch(port, "/api/tasks?limit=10000")
    failed = [task["name"] for task in tasks.values() if task["state"] == "FAILURE"]
    assert failed == ["sharewright.create_share"] * ROLLED_BACK
    for operation_id in done:
        for name in STEPS:
            assert _shown(tasks, name, operation_id), (name, operation_id)
    for operation_id in undone:
        for name in (*STEPS, *COMPENSATIONS):
            assert _shown(tasks, name, operation_id), (name, operation_id)
    left = {t["name"] for t in tasks.values() if t["state"] in {"STARTED", "RECEIVED"}}
    assert not left - {"sharewright.report_pools"}
    everything = json.dumps(tasks) + json.dumps(fetch(port, "/api/workers"))
    assert SECRET not in everything
    assert SECRET not in deployment.logs()


def _shown(tasks: dict[str, Any], name: str, operation_id: str) -> bool:
    return any(
        task["name"] == f"sharewright.{name}" and operation_id in (task["args"] or "")
        for task in tasks.values()
    )
