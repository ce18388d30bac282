"""One deployment on which the runs are made: its services, its processes, and a look at both."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

from celery import Celery
from sqlalchemy import create_engine

from scheduler.client import Client
from tests.crash.matrix.cells import MODES
from tests.crash.matrix.external import ExternalSystem, Finding
from tests.support.pace import limit
from tests.support.services import Process, RedisServer, python, wait_until
from worker.db.schema import upgrade
from worker.systems.fake_world import World

BACKENDS: Final = """
[backends.single]
mode = "single_svm"
share_driver = "fake"
[backends.flat]
mode = "flat_multi_svm"
share_driver = "fake"
compute_helper = "fake"
network_helpers = ["flat_network"]
share_network_addresses = true
[backends.managed]
mode = "managed_multi_svm"
share_driver = "fake"
compute_helper = "fake"
network_helpers = ["fake"]
compute = { boot_seconds = 0.3 }
"""
"""One a mode. The addresses of ``flat`` are our own tables', those of ``managed`` the world's."""
LEASE: Final = 1.5
TIMEOUT: Final = 4.0
"""Of every step, in seconds."""
LOOK_SECONDS: Final = 0.1
_ARGUMENTS: Final = re.compile(r"[(\[]'([^']+)', (\d+)[)\]]")
"""Of a chain's first message, and of those that were stored in it."""


class Messages:
    """Every step's message that any worker received, by Celery's own events."""

    def __init__(self, url: str) -> None:
        self._app = Celery(broker=url)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ready = threading.Event()
        self._stopped = threading.Event()
        self.received: dict[str, list[tuple[float, str, int]]] = defaultdict(list)
        """Operation id: when each message came, its own id, and its dispatch number."""

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(limit()), "Celery's events are listened to"

    def _run(self) -> None:
        with self._app.connection_for_read() as connection:
            handlers = {"task-received": self._note}
            receiver = self._app.events.Receiver(connection, handlers=handlers)
            with receiver.consumer_context() as (listening, _, _):
                self._ready.set()
                while not self._stopped.is_set():
                    with suppress(TimeoutError):
                        listening.drain_events(timeout=1.0)

    def stop(self) -> None:
        """Listen no more."""
        self._stopped.set()
        self._thread.join()

    def _note(self, event: dict[str, Any]) -> None:
        if found := _ARGUMENTS.fullmatch(event.get("args") or ""):
            # Workers gather events for a while, so they do not come here in their order.
            self.received[found[1]].append((event["timestamp"], event["uuid"], int(found[2])))

    def multiplied(self) -> Iterator[str]:
        """Operations of which an old message was let go on after a newer one had come.

        One link of an old chain may still come: its worker had published it, or was about to.
        """
        for operation_id, received in list(self.received.items()):
            newest, late = 0, defaultdict[int, set[str]](set)
            for _, message, number in sorted(received):
                newest = max(newest, number)
                if number < newest:
                    late[number].add(message)
            if any(len(messages) > 1 for messages in late.values()):
                yield operation_id


class Lane:
    """The processes, started once and again whenever one dies, and what the journal says."""

    def __init__(
        self,
        directory: Path,
        database_url: str,
        redis: RedisServer,
        *,
        workers: int,
        schedulers: int,
        sabotage: str = "",
    ) -> None:
        self.directory = directory
        self.tokens = directory / "tokens"
        self.tokens.mkdir()
        path = directory / "sharewright.toml"
        path.write_text(
            f'state_dir = "{directory}"\n[database]\nurl = "{database_url}"\n'
            f'[broker]\nurl = "{redis.url()}"\nresult_backend = "{redis.url(1)}"\n'
            f"[engine]\nlease = {LEASE}\nretry_pause = 0.2\nfailed_undo_pause = 1.0\n"
            f"retry_time = 3.0\nundo_retry_time = 20.0\n"
            f"queued_limit = 5.0\nreport_interval = 5.0\n{BACKENDS}"
        )
        upgrade(database_url)
        self.worlds = {mode: World(directory / "backends" / mode / "world.db") for mode in MODES}
        engine = create_engine(database_url)
        self.external = ExternalSystem(engine, [world.path for world in self.worlds.values()])
        self.client = Client(redis.url(), redis.url(1))
        self.results = redis.client(1)
        self.messages = Messages(redis.url())
        self.operations: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
        """Project: its operations by their ids, as they were a moment ago."""
        self.watched: set[str] = set()
        self.launcher = Process(
            python(
                "tests.crash.matrix.launcher",
                *(str(directory), str(workers), str(schedulers), str(TIMEOUT), sabotage),
            ),
            log=directory / "launcher.log",
            env={
                "SHAREWRIGHT_CONFIG": str(path),
                "SHAREWRIGHT_FAILPOINT_TOKENS": str(self.tokens),
            },
        )

    def start(self) -> Self:
        """Start everything; wait until every backend has reported."""
        self.messages.start()
        self.launcher.start()

        def reported() -> bool:
            rows = self.external.rows("SELECT name FROM backends WHERE reported_at IS NOT NULL")
            return len(rows) == len(MODES)

        wait_until(reported, "every backend has reported")
        for mode in MODES:
            wanted = {"name": mode, "extra_specs": {"share_backend_name": mode}}
            payload = {"version": 1, "context": {"project_id": "admin"}, **wanted}
            self.client.submit("create_share_type", payload, admin=True, timeout=60)
        return self

    async def look(self) -> None:
        """Keep up with the journal, until cancelled."""
        while True:
            assert self.launcher.running, self.launcher.output()
            if self.watched:
                names = ", ".join(f"'{project}'" for project in sorted(self.watched))
                for row in self.external.rows(
                    "SELECT id, project_id, verb, task, state, phase, result, error, dispatch"
                    f" FROM operations WHERE project_id IN ({names}) ORDER BY seq"
                ):
                    self.operations[row["project_id"]][row["id"]] = row
            await asyncio.sleep(LOOK_SECONDS)

    def timeline(self, project: str) -> str:
        """What the journal has of a project, for who looks for a fault."""
        lines = []
        for row in self.external.rows(
            "SELECT id, verb, state, phase, task, dispatch, fence, attempts, redrives, error"
            " FROM operations WHERE project_id = :project ORDER BY seq",
            project=project,
        ):
            lines.append(f"    {row}")
            steps = self.external.rows(
                "SELECT task, outcome, attempt, worker, started_at, message FROM operation_steps"
                " WHERE operation_id = :id ORDER BY seq",
                id=row["id"],
            )
            lines += [f"        {step}" for step in steps]
        return "\n".join(lines)

    def multiplied(self) -> Iterator[Finding]:
        """Broken promises about messages."""
        projects = {row["id"]: row["project_id"] for row in self.external.operations()}
        for operation_id in self.messages.multiplied():
            yield Finding(
                "duplicated",
                projects.get(operation_id, ""),
                f"an old message of operation {operation_id} was let go on",
            )

    def close(self) -> None:
        """Kill every process."""
        self.messages.stop()
        self.client.close()
        self.launcher.close()
        self.results.close()
        self.external.engine.dispose()
