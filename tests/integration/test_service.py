"""``sharewright up``: one process tree that keeps running, ends whole, and takes over."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from scheduler.client import Client
from scheduler.service import tree
from scheduler.service.home import LOG_BYTES
from tests.support.deployment import FAKE_BACKEND
from tests.support.pace import limit
from tests.support.services import Process, alive, python, wait_until
from worker.sealing import Keys

SETTINGS = "[health]\nport = 0\n[engine]\nlease = 3.0\n"


class Up:
    """One home and the ``up`` that runs in it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir()
        (home / "sharewright.toml").write_text(SETTINGS + FAKE_BACKEND)
        self.process = Process(
            python("scheduler.cli", "up", "--home", str(home)), log=home / "up.log"
        )

    def start(self) -> Up:
        self.process.start("ready:")
        return self

    @property
    def service(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.home / "service.json").read_text())
        return document

    def pid(self, role: str) -> int:
        return int(self.service["pids"].get(role, 0))

    def members(self) -> list[int]:
        return [pid for pid in tree.holders(self.home / "members") if pid != os.getpid()]

    def client(self) -> Client:
        return Client(self.service["broker_url"], self.service["result_backend"])

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(
                self.service["health_url"] + path, timeout=limit()
            ) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def share(self, client: Client, name: str) -> dict[str, Any]:
        """A share, on a network of its own."""
        network = self.ask(client, "create_share_network", flat_network_ip_pool=["10.9.0.0/24"])
        return self.ask(client, "create_share", size=1, name=name, share_network_id=network["id"])

    def ask(self, client: Client, verb: str, **fields: Any) -> dict[str, Any]:
        payload = {"version": 1, "context": {"project_id": "p"}, **fields}
        return client.result(client.submit(verb, payload, timeout=60), timeout=limit())

    def set_boot_seconds(self, seconds: float) -> None:
        (self.home / "sharewright.toml").write_text(
            SETTINGS + FAKE_BACKEND + f"[backends.fake.compute]\nboot_seconds = {seconds}\n"
        )


@pytest.fixture
def make_up(tmp_path: Path) -> Iterator[Callable[[], Up]]:
    made: list[Up] = []

    def make() -> Up:
        made.append(Up(tmp_path / f"home{len(made)}"))
        return made[-1]

    yield make
    for up in made:
        up.process.close()
        for pid in up.members():
            os.kill(pid, signal.SIGKILL)


def test_a_log_does_not_grow_for_ever(make_up: Callable[[], Up]) -> None:
    up = make_up()
    log = up.home / "logs" / "worker-default.log"
    log.parent.mkdir()
    log.write_bytes(b"before\n")
    os.truncate(log, LOG_BYTES + 1)
    up.start()
    aside = log.with_suffix(".log.1")
    wait_until(lambda: aside.exists() and log.stat().st_size <= LOG_BYTES, "it is set aside")
    assert aside.stat().st_size > LOG_BYTES
    assert aside.read_bytes().startswith(b"before\n")
    os.kill(up.pid("redis"), signal.SIGKILL)  # the worker has something to say of that
    wait_until(lambda: log.stat().st_size > 0, "its writer goes on at the beginning")
    assert log.read_bytes()[:1] != b"\0"


def test_a_share_by_message_and_nothing_left_after_the_stop(make_up: Callable[[], Up]) -> None:
    up = make_up().start()
    assert set(up.service["pids"]) == {
        *("up", "redis", "scheduler", "scheduler-reads"),
        *("worker-default", "reconciler", "health"),
    }
    client = up.client()
    assert up.share(client, "one")["status"] == "available"
    assert client.seal("x", project_id="p")["key_id"] == Keys(up.home / "secrets").ids()[0]
    client.close()
    assert up.get("/healthz")[0] == 200
    assert up.get("/readyz") == (200, '{"status": "ready", "missing": []}\n')
    tree_before = up.process.children()
    assert up.process.terminate() == 0
    assert not any(map(alive, tree_before))
    assert up.members() == []
    assert not (up.home / "service.json").exists()


def test_a_child_that_dies_is_started_again(make_up: Callable[[], Up]) -> None:
    up = make_up().start()
    for role in ("scheduler", "scheduler-reads", "worker-default", "reconciler", "health"):
        before = up.pid(role)
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: up.pid(role) not in {0, before}, f"{role} runs again")  # noqa: B023 - within the loop
    client = up.client()
    assert up.share(client, "after all that")["status"] == "available"
    client.close()
    wait_until(lambda: up.get("/readyz")[0] == 200, "it is ready again")


def test_a_pool_does_not_outlive_its_worker(make_up: Callable[[], Up]) -> None:
    up = make_up().start()
    worker = psutil.Process(up.pid("worker-default"))
    pool = [child.pid for child in worker.children()]
    assert len(pool) == 2
    worker.kill()
    wait_until(lambda: not any(map(alive, pool)), "its pool is gone")


def test_redis_killed_is_back_and_nothing_is_lost(make_up: Callable[[], Up]) -> None:
    up = make_up()
    up.set_boot_seconds(3)
    up.start()
    client = up.client()
    network = up.ask(client, "create_share_network", flat_network_ip_pool=["10.9.0.0/24"])
    request = {
        "version": 1,
        "context": {"project_id": "p"},
        "size": 1,
        "share_network_id": network["id"],
    }
    operations = [client.submit("create_share", request) for _ in range(20)]
    before = up.pid("redis")
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: up.pid("redis") not in {0, before}, "Redis runs again")
    wait_until(lambda: up.get("/readyz")[0] == 200, "the service is ready again")
    client.close()
    client = up.client()
    results = [client.result(operation, timeout=limit()) for operation in operations]
    assert {share["status"] for share in results} == {"available"}
    assert len({share["id"] for share in results}) == 20
    assert up.share(client, "afterwards")["status"] == "available"
    client.close()


def test_a_second_up_on_the_same_home_is_refused(make_up: Callable[[], Up]) -> None:
    up = make_up().start()
    second = Process(up.process.command, log=up.home / "second.log").start()
    assert second.wait() == 3
    assert f"process {up.process.pid}" in second.output()
    assert "Traceback" not in second.output()
    second.close()
    assert up.get("/readyz")[0] == 200


def test_killed_with_all_signals_it_ends_and_a_second_takes_over(
    make_up: Callable[[], Up],
) -> None:
    up = make_up()
    up.set_boot_seconds(2)
    up.start()
    client = up.client()
    network = up.ask(client, "create_share_network", flat_network_ip_pool=["10.9.0.0/24"])
    request = {
        "version": 1,
        "context": {"project_id": "p"},
        "size": 1,
        "share_network_id": network["id"],
    }
    operation = client.submit("create_share", request)
    client.close()
    left = up.process.children()
    assert len(left) >= 7
    up.process.kill()
    assert (up.home / "service.json").exists()
    up.start()
    assert not any(map(alive, left))
    client = up.client()
    assert client.result(operation, timeout=limit())["status"] == "available"
    client.close()
    assert up.process.terminate() == 0
    assert up.members() == []


def test_what_a_killed_one_left_running_is_ended(make_up: Callable[[], Up]) -> None:
    up = make_up().start()
    up.process.kill()
    wait_until(lambda: up.members() == [], "the tree is gone")
    stubborn = (
        "import signal, sys, time; kept = open(sys.argv[1]);"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('here', flush=True); time.sleep(99)"
    )
    left = Process((sys.executable, "-c", stubborn, str(up.home / "members")), log=up.home / "x")
    left.start("here")
    up.start()
    assert left.returncode == -signal.SIGKILL
    left.close()


def test_a_child_that_outlives_a_killed_one_does_not_keep_the_lock(tmp_path: Path) -> None:
    # As a worker does that waits for its disk: the kill reaches it later than its parents.
    outlived = (
        "import os, pathlib, signal, sys, time; from scheduler.service import tree\n"
        "with tree.alone(pathlib.Path(sys.argv[1])):\n"
        "    if os.fork() == 0:\n"
        "        os.setsid(); print('here', flush=True); time.sleep(99)\n"
        "    time.sleep(0.5); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = (sys.executable, "-c", outlived, str(tmp_path))
    killed = Process(command, log=tmp_path / "log").start("here")
    assert killed.wait() == -signal.SIGKILL
    (left,) = tree.holders(tmp_path / "members")
    with tree.alone(tmp_path):
        assert not alive(left)
    killed.close()


def test_a_configuration_that_cannot_work_is_a_sentence(make_up: Callable[[], Up]) -> None:
    up = make_up()
    config = up.home / "sharewright.toml"
    config.write_text(config.read_text().replace('mode = "flat_multi_svm"', 'mode = "single_svm"'))
    up.process.start()
    assert up.process.wait() == 8
    assert "uses a server that exists already" in up.process.output()
    assert "Traceback" not in up.process.output()
    assert up.members() == []


def test_readyz_says_what_is_missing(make_up: Callable[[], Up]) -> None:
    up = make_up().start()
    with sqlite3.connect(up.home / "sharewright.db") as database:
        database.execute("UPDATE backends SET reported_at = 1")
    assert up.get("/readyz")[0] == 503
    assert "No backend has reported" in up.get("/readyz")[1]
    with sqlite3.connect(up.home / "sharewright.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'older'")
    assert "sharewright db upgrade" in up.get("/readyz")[1]
    assert up.get("/healthz")[0] == 200


def test_metrics_show_the_work(make_up: Callable[[], Up]) -> None:
    up = make_up().start()
    client = up.client()
    up.share(client, "one")
    client.close()
    wanted = (
        'sharewright_operations_ended_total{state="succeeded"} 1.0',
        'sharewright_steps_total{outcome="done",task="create_share"} 1.0',
        'sharewright_storage_pool_gib{amount="allocated",backend="fake",pool="pool"} 1.0',
        "sharewright_compensations_failed_total 0.0",
        'sharewright_backend_up{backend="fake"} 1.0',
    )
    # The workers' counters are written once a second.
    wait_until(lambda: all(line in up.get("/metrics")[1] for line in wanted), str(wanted))
