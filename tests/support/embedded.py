"""A running ``sharewright up``, asked by message as producers ask it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Engine, func, select

from scheduler.client import Client
from tests.support.pace import limit
from tests.support.services import Process, python, wait_until
from worker.db.core.engine import engine_for, reading
from worker.db.tables.main import operations

SUBNET = "10.98.0.0/24"
POOL = "10.98.0.16/28"


@dataclass
class EmbeddedService:
    """A ``sharewright up`` of its own home."""

    home: Path
    process: Process
    client: Client
    database_url: str

    @classmethod
    def up(cls, home: Path) -> Self:
        process = Process(python("scheduler.cli", "up", "--home", str(home)), log=home / "up.log")
        process.start("ready:")
        service = json.loads((home / "service.json").read_text())
        client = Client(service["broker_url"], service["result_backend"])
        return cls(home, process, client, service["database_url"])

    @property
    def engine(self) -> Engine:
        return engine_for(self.database_url)

    def ask(self, project: str, verb: str, **fields: Any) -> dict[str, Any]:
        """Send a request and wait for what came of it."""
        payload = {"version": 1, "context": {"project_id": project}, **fields}
        return self.client.result(
            self.client.submit(verb, payload, timeout=limit()), timeout=limit()
        )

    def network(self, project: str) -> str:
        """Create a share network with a pool of addresses and return its id."""
        return str(
            self.ask(
                project,
                "create_share_network",
                name=f"{project}'s",
                flat_network_ip_pool=[POOL],
                flat_network_subnet=SUBNET,
            )["id"]
        )

    def bridge(self, project: str, share: dict[str, Any]) -> str:
        """Return the bridge that a client of the share is to be attached to."""
        network = self.ask(
            project, "show_share_network", share_network_id=share["share_network_id"]
        )
        (attachment,) = network["attachments"]
        return str(attachment["bridge"])

    def settle(self) -> None:
        """Wait until nothing is in flight: servers are cleaned up behind the last share."""
        live = operations.c.state.in_(("pending", "running", "undoing"))

        def is_quiet() -> bool:
            with reading(self.engine) as connection:
                count = select(func.count()).select_from(operations).where(live)
                return not connection.execute(count).scalar_one()

        wait_until(is_quiet, "no operation is in flight")

    def close(self) -> None:
        self.client.close()
        if self.process.running:
            self.process.terminate()
        self.process.close()
        self.engine.dispose()
