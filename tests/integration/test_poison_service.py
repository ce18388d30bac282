"""Poison on every queue of a whole deployment: kept, listed, and nobody dies of it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from sqlalchemy import func, select

from tests.integration.test_poison import KINDS
from tests.support.deployment import Deployment
from tests.support.pace import limit
from tests.support.services import ROOT, RedisServer, python, wait_until
from worker.db.core.engine import reading
from worker.db.tables.main import dead_letters

QUEUES = ("requests", "requests.admin", "steps.default.0")


def test_poison_on_every_queue(tmp_path: Path, sqlite_url: str, redis_server: RedisServer) -> None:
    deployment = Deployment(tmp_path, sqlite_url, redis_server)
    try:
        deployment.start()
        pids = {name: process.pid for name, process in deployment.processes.items()}
        with redis_server.client() as client:
            for queue in QUEUES:
                for make, _ in KINDS.values():
                    client.lpush(queue, make(queue))
        # A sound request that is too long.
        huge = deployment.payload(size=1, description="x" * 300_000)
        deployment.client.send("create_share", huge, operation_id="too-long")
        expected = len(KINDS) * len(QUEUES) + 1

        def kept() -> int:
            with reading(deployment.engine) as connection:
                count = connection.execute(select(func.count()).select_from(dead_letters))
                return int(count.scalar_one())

        wait_until(lambda: kept() >= expected, "all poison is kept")
        network = deployment.network()
        made = deployment.ask("create_share", size=1, share_network_id=network)
        assert made["status"] == "available"
        assert kept() == expected
        for name, process in deployment.processes.items():
            assert process.running
            assert process.pid == pids[name]
        listed = subprocess.run(
            python("scheduler.cli", "--json", "dead-letter", "list", "--limit", "1000"),
            check=True,
            capture_output=True,
            text=True,
            timeout=limit(),
            cwd=ROOT,
            env={**os.environ, **deployment.env},
        )
        document = json.loads(listed.stdout)
        found = next(value for value in document.values() if isinstance(value, list))
        assert len(found) == expected
        assert {item["queue"] for item in found} == set(QUEUES)
    finally:
        deployment.close()
