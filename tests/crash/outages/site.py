"""A deployment that is to suffer: services of its own, and processes that are forked again."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import ClassVar, Final

import psutil
from sqlalchemy import create_engine

from scheduler.client import Client
from tests.crash.matrix.cells import MODES
from tests.crash.matrix.external import ExternalSystem, Finding
from tests.crash.matrix.lane import BACKENDS
from tests.support.pace import limit
from tests.support.services import Process, RedisServer, alive, python, wait_until
from worker.db.schema import upgrade
from worker.systems.fake_world import World

LEASE: Final = 1.5
STEP_SECONDS: Final = 4.0
"""How long a step may take."""


class Site:
    """Workers of one step each, schedulers, a reconciler; all are started again when they die.

    ``disturbance`` names what is wrong with every process (:mod:`tests.crash.outages.disturbed`).
    """

    settings: ClassVar[Mapping[str, float]] = {
        "lease": LEASE,
        "retry_pause": 0.2,
        "retry_time": 5.0,
        "undo_retry_time": 20.0,
        "failed_undo_pause": 1.0,
        "queued_limit": 5.0,
        "report_interval": 5.0,
    }
    """Of the configuration's table ``engine``."""

    def __init__(
        self,
        directory: Path,
        database_url: str,
        redis: RedisServer,
        *,
        workers: int = 4,
        schedulers: int = 2,
        disturbance: str = "none",
        **engine: float,
    ) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.redis = redis
        self.calm_at = 0.0
        """When the last fault was over; the far future while there is one."""
        self._config = directory / "sharewright.toml"
        settings = {**self.settings, **engine}
        lines = "\n".join(f"{name} = {value}" for name, value in settings.items())
        self._config.write_text(
            f'state_dir = "{directory}"\n[database]\nurl = "{database_url}"\n'
            f'[broker]\nurl = "{redis.url()}"\nresult_backend = "{redis.url(1)}"\n'
            f"[engine]\n{lines}\n{BACKENDS}"
        )
        self.env = {"SHAREWRIGHT_CONFIG": str(self._config)}
        self.migrate(database_url)
        worlds = [World(directory / "backends" / mode / "world.db").path for mode in MODES]
        self.external = ExternalSystem(create_engine(database_url, pool_pre_ping=True), worlds)
        self.launcher = Process(
            python(
                "tests.crash.outages.disturbed",
                *(disturbance, str(directory), str(workers), str(schedulers), str(STEP_SECONDS)),
            ),
            log=directory / "launcher.log",
            env=self.env,
        )

    def migrate(self, database_url: str) -> None:
        """Create the tables."""
        upgrade(database_url)

    def start(self) -> Site:
        """Start all; wait until every backend has reported, and create a share type a mode."""
        self.launcher.start()
        self.create_share_types()
        return self

    def create_share_types(self) -> None:
        """Create a share type a mode, once every backend has reported."""
        wait_until(self._reported, "every backend has reported")
        client = self.client()
        for mode in MODES:
            wanted = {"name": mode, "extra_specs": {"share_backend_name": mode}}
            payload = {"version": 1, "context": {"project_id": "admin"}, **wanted}
            client.submit("create_share_type", payload, admin=True, timeout=limit())
        client.close()

    def _reported(self) -> bool:
        rows = self.external.rows("SELECT name FROM backends WHERE reported_at IS NOT NULL")
        return len(rows) == len(MODES)

    def client(self) -> Client:
        """A producer's connection."""
        return Client(self.redis.url(), self.redis.url(1))

    def processes(self, role: str) -> list[psutil.Process]:
        """The main processes of a role (``worker``, ``scheduler``, ``reconciler``) that run."""
        # Celery renames its own where setproctitle is installed.
        names = (f"sw-{role}", f"[celeryd: {role}")
        found = []
        for one in psutil.Process(self.launcher.pid).children():
            with suppress(psutil.NoSuchProcess):  # it ended meanwhile
                if any(shown.startswith(names) for shown in (one.name(), *one.cmdline()[:1])):
                    found.append(one)
        return found

    @contextmanager
    def trouble(self) -> Iterator[None]:
        """Something is wrong meanwhile."""
        self.calm_at = float("inf")
        yield
        self.calm()

    def calm(self) -> None:
        """What was wrong is over."""
        self.calm_at = time.monotonic()

    def renew(self, role: str) -> None:
        """Stop each process of a role as an upgrade does, one after the other."""
        running = self.processes(role)
        assert running, f"no {role} runs"
        for process in running:
            process.send_signal(signal.SIGTERM)
            wait_until(partial(self._is_renewed, role, process), f"another {role} runs")

    def _is_renewed(self, role: str, old: psutil.Process) -> bool:
        born = old.create_time()
        return not alive(old.pid) and any(one.create_time() > born for one in self.processes(role))

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """All workers are stopped meanwhile, in the middle of whatever they do."""
        found = [one for main in self.processes("worker") for one in (main, *main.children())]
        assert found, "no worker runs"
        for one in found:
            one.suspend()
        yield
        for one in found:
            one.resume()

    def in_flight(self) -> list[dict[str, object]]:
        """Operations that are not at their end."""
        return self.external.rows(
            "SELECT * FROM operations"
            " WHERE state IN ('pending', 'running', 'undoing') OR phase IS NOT NULL"
        )

    def settle(self, times: float = 1.0) -> None:
        """Wait until nothing is in flight."""
        wait_until(lambda: not self.in_flight(), "every operation has ended", times)

    def findings(self, projects: list[str]) -> Iterator[Finding]:
        """What is not as it should be, while nothing is in flight."""
        for row in self.in_flight():
            yield Finding("stuck", str(row["project_id"]), str(row))
        for project in projects:
            yield from self.external.standing(project)
        yield from self.external.repeated()

    def logs(self) -> str:
        """What all processes have written last."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-4000:]}"
            for path in sorted(self.directory.glob("*.log"))
        )

    def close(self) -> None:
        """Kill every process."""
        self.launcher.close()
        self.external.engine.dispose()
