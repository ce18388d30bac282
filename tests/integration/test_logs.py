"""Logs in JSON: one object a line from every process, with the id of what it is about."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.deployment import FAKE_BACKEND, Deployment
from tests.support.services import Process, RedisServer, python, wait_until
from worker.errors import RequestFailed
from worker.logs import FIELDS
from worker.systems.fake_world import World

JSON_LOG = '[log]\nformat = "json"\n[health]\nport = 0\n'


def lines(log: Path) -> list[dict[str, Any]]:
    """Every line of a log, each of which is an object with the documented fields."""
    found = []
    for line in log.read_text().splitlines():
        document = json.loads(line)
        assert {"time", "level", "logger", "process", "message"} <= set(document) <= set(FIELDS)
        assert datetime.fromisoformat(document["time"]).tzinfo is not None
        found.append(document)
    return found


@pytest.fixture
def deployment(tmp_path: Path, redis_server: RedisServer) -> Iterator[Deployment]:
    url = f"sqlite:///{tmp_path}/service.db"
    made = Deployment(tmp_path, url, redis_server, FAKE_BACKEND + JSON_LOG)
    try:
        made.role("health")
        yield made.start()
    finally:
        made.close()


def test_every_process_writes_json_and_nothing_else(deployment: Deployment) -> None:
    network = deployment.network()
    client = deployment.client

    def outcome(**fields: Any) -> str:
        context = {"project_id": "p1", "request_id": f"asked-{fields['size']}"}
        payload = {"version": 1, "context": context, **fields}
        operation_id = client.submit("create_share", payload, operation_id=f"op-{fields['size']}")
        client.result(operation_id, timeout=60)
        return operation_id

    outcome(size=1, share_network_id=network)
    with pytest.raises(RequestFailed, match="There is no share network nope"):
        outcome(size=2, share_network_id="nope")
    World(deployment.directory / "backends" / "fake" / "world.db").arm("create_share", "fatal")
    with pytest.raises(RequestFailed):
        outcome(size=3, share_network_id=network)
    for name in ("worker-0", "scheduler", "reconciler", "health"):
        deployment.processes[name].terminate()
    said = {name: lines(deployment.directory / f"{name}.log") for name in deployment.processes}
    assert all(said[name] for name in ("worker-0", "scheduler"))
    of_create = [line for line in said["worker-0"] if line["operation"] == "op-1"]
    assert {"create_share is done"} <= {line["message"] for line in of_create}
    assert {line["request"] for line in of_create} == {"asked-1"}
    assert {line["project"] for line in of_create} == {"p1"}
    refused = [line for line in said["scheduler"] if line["operation"] == "op-2"]
    assert len(refused) == 1
    assert refused[0]["message"].startswith("Refused create_share: There is no share network nope")
    assert refused[0]["level"] == "INFO"
    failed = [line for line in said["worker-0"] if line["operation"] == "op-3"]
    assert any(
        line["message"].startswith("create_share") and "failed" in line["message"]
        for line in failed
    )
    every = [line["message"] for found in said.values() for line in found]
    assert not [message for message in every if "superuser" in message]
    assert not [message for message in every if "received" in message and "Task" in message]


def test_a_process_that_cannot_start_says_so_in_json(deployment: Deployment) -> None:
    refused = deployment.role("worker", "--group", "nobodys", name="refused")
    wait_until(lambda: not refused.running, "the worker has ended")
    assert refused.returncode == 8
    [line] = lines(deployment.directory / "refused.log")
    assert "No backend belongs to worker group 'nobodys'" in line["message"]


def test_up_writes_json_too(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "sharewright.toml").write_text(FAKE_BACKEND + JSON_LOG)
    up = Process(python("scheduler.cli", "up", "--home", str(home)), log=tmp_path / "up.log")
    try:
        up.start("ready:")
        up.terminate()
    finally:
        up.close()
    messages = [line["message"] for line in lines(tmp_path / "up.log")]
    assert messages[-1].startswith("Stopping")
    for log in (home / "logs").glob("*.log"):
        if log.stem != "redis":
            lines(log)
