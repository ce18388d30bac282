"""A whole deployment as processes: scheduler, workers, reconciler, on the tests' real services."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Engine, func, select

from scheduler.client import Client
from tests.support.pace import limit, slowed
from tests.support.services import Process, RedisServer, python, wait_until
from worker.db.core.engine import engine_for, reading
from worker.db.schema import upgrade
from worker.db.tables.main import backends, operations

FAKE_BACKEND = """
[backends.fake]
mode = "flat_multi_svm"
share_driver = "fake"
compute_helper = "fake"
network_helpers = ["fake"]
share_network_addresses = true
"""


class Deployment:
    """Processes with one configuration; everything ends with :meth:`close`.

    ``settings`` is TOML: the backends and whatever else differs from the quick settings for tests
    (a lease of 3 s, for example).
    """

    def __init__(
        self,
        directory: Path,
        database_url: str,
        redis: RedisServer,
        settings: str = FAKE_BACKEND,
        engine: Mapping[str, float] | None = None,
    ) -> None:
        self.directory = directory
        self.database_url = database_url
        self.redis = redis
        self.config_path = directory / "sharewright.toml"
        engine_settings = {"lease": slowed(3.0), "retry_pause": 0.2, "report_interval": 5.0}
        engine_settings.update(engine or {})
        lines = "\n".join(f"{name} = {value}" for name, value in engine_settings.items())
        self.config_path.write_text(
            f'state_dir = "{directory}"\n'
            f'[database]\nurl = "{database_url}"\n'
            f'[broker]\nurl = "{redis.url()}"\nresult_backend = "{redis.url(1)}"\n'
            f"[engine]\n{lines}\n{settings}"
        )
        self.env = {"SHAREWRIGHT_CONFIG": str(self.config_path)}
        self.processes: dict[str, Process] = {}
        upgrade(database_url)
        self.client = Client(redis.url(), redis.url(1))

    def start(self, *, workers: int = 1, concurrency: int = 2, **env: str) -> Self:
        """Start everything once; wait until every backend has reported."""
        self.role("scheduler")
        for number in range(workers):
            self.worker(f"worker-{number}", concurrency=concurrency, **env)
        self.role("reconciler")
        self.wait_reported()
        return self

    def role(self, role: str, *arguments: str, name: str | None = None, **env: str) -> Process:
        """Start ``sharewright <role>``; without waiting for it."""
        key = name or role
        process = Process(
            python("scheduler.cli", role, *arguments),
            log=self.directory / f"{key}.log",
            env={**self.env, **env},
        )
        self.processes[key] = process.start()
        return process

    def worker(
        self, name: str, *, group: str = "default", concurrency: int = 2, **env: str
    ) -> Process:
        """Start a worker of a group."""
        return self.role(
            *("worker", "--group", group, "--name", name, "--concurrency", str(concurrency)),
            name=name,
            **env,
        )

    def wait_reported(self, count: int = 1) -> None:
        """Wait until so many backends have reported their pools."""

        def reported() -> bool:
            with reading(self.engine) as connection:
                number = connection.execute(
                    select(func.count())
                    .select_from(backends)
                    .where(backends.c.reported_at.is_not(None))
                ).scalar_one()
            return int(number) >= count

        wait_until(reported, f"{count} backends have reported")

    @property
    def engine(self) -> Engine:
        """The tests' own connections to the deployment's database."""
        return engine_for(self.database_url)

    def payload(self, project: str = "p1", **fields: Any) -> dict[str, Any]:
        """A request's payload."""
        return {"version": 1, "context": {"project_id": project}, **fields}

    def ask(
        self,
        verb: str,
        *,
        project: str = "p1",
        admin: bool = False,
        **fields: Any,
    ) -> dict[str, Any]:
        """Send a request and wait for its object."""
        operation_id = self.client.submit(
            verb, self.payload(project, **fields), admin=admin, timeout=limit()
        )
        return self.client.result(operation_id, timeout=limit())

    def network(self, project: str = "p1", cidr: str = "10.0.0.0/24", **fields: Any) -> str:
        """Make a flat_pool share network; return its id."""
        made = self.ask(
            "create_share_network", project=project, flat_network_ip_pool=[cidr], **fields
        )
        return str(made["id"])

    def operation_states(self) -> dict[str, int]:
        """How many operations are in each state."""
        with reading(self.engine) as connection:
            rows = connection.execute(
                select(operations.c.state, func.count()).group_by(operations.c.state)
            )
            return {row[0]: row[1] for row in rows}

    def settle(self) -> dict[str, int]:
        """Wait until no operation is live or queued; return how many are in each state."""
        deadline = time.monotonic() + limit()
        while True:
            states = self.operation_states()
            if not {"pending", "running", "undoing"} & states.keys():
                return states
            if time.monotonic() > deadline:
                raise AssertionError(f"Not settled within {limit():.0f} s: {states}")
            time.sleep(0.1)

    def logs(self) -> str:
        """What all processes have written, for a failed test's message."""
        return "\n".join(
            f"--- {name}\n{process.log.read_text(errors='replace')[-6000:]}"
            for name, process in self.processes.items()
            if process.log.exists()
        )

    def close(self) -> None:
        """Kill every process."""
        self.client.close()
        for process in self.processes.values():
            process.close()
        engine_for(self.database_url).dispose()
