"""A process that hangs ends itself, so that its supervisor starts it again."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from celery import Celery
from sqlalchemy.engine import URL, make_url

from tests.support.deployment import FAKE_BACKEND
from tests.support.proxy import Proxy
from tests.support.services import ROOT, Process, RedisServer, python
from worker.db.schema import upgrade
from worker.engine.watchdog import EXIT_CODE

SECONDS = 2.0
_SCRIPT = """
import logging, sys, time
from worker.engine.watchdog import Watchdog
logging.basicConfig(level=logging.INFO)
watchdog = Watchdog("The test's pass", 2.0)
for _ in range({beats}):
    watchdog.beat()
    print("beat", flush=True)
    time.sleep(0.5)
{then}
print("came back", flush=True)
"""


def run(beats: int, then: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*python("-c")[:1], "-c", _SCRIPT.format(beats=beats, then=then)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_a_pass_that_does_not_come_back_ends_the_process() -> None:
    process = run(1, "time.sleep(3600)")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_CODE
    assert "The test's pass has not come back for 2 s" in output


def test_passes_that_come_back_go_on() -> None:
    process = run(10, "watchdog.suspend(); time.sleep(4)")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert output.endswith("came back\n")


def test_a_process_that_was_stopped_is_not_at_fault() -> None:
    process = run(10, "")
    assert process.stdout is not None
    assert process.stdout.readline() == "beat\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(2 * SECONDS)
    process.send_signal(signal.SIGCONT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output


def _connector(url: URL) -> socket.socket:
    host = url.query.get("host") or url.host or "127.0.0.1"
    port = url.port or 5432
    if str(host).startswith("/"):
        found = socket.socket(socket.AF_UNIX)
        found.connect(f"{host}/.s.PGSQL.{port}")
        return found
    return socket.create_connection((str(host), port))


@pytest.mark.parametrize("role", ["reconciler", "scheduler"])
def test_a_database_that_falls_silent_ends_it(
    tmp_path: Path, postgres_url: str, redis_server: RedisServer, role: str
) -> None:
    """The connection is there and is acknowledged, so that no time limit of TCP is met."""
    upgrade(postgres_url)
    url = make_url(postgres_url)
    with Proxy(lambda: _connector(url)) as proxy:
        silent = url.set(host="127.0.0.1", port=proxy.port, query={})
        path = tmp_path / "sharewright.toml"
        path.write_text(
            f'state_dir = "{tmp_path}"\n[engine]\nwatchdog = {SECONDS}\n'
            f'[database]\nurl = "{silent.render_as_string(hide_password=False)}"\n'
            f'[broker]\nurl = "{redis_server.url()}"\n'
            f'result_backend = "{redis_server.url(1)}"\n{FAKE_BACKEND}'
        )
        process = Process(
            python("scheduler.cli", role),
            log=tmp_path / "log",
            env={"SHAREWRIGHT_CONFIG": str(path)},
        ).start()
        try:
            if role == "scheduler":
                process.await_ready("takes from")
                proxy.be_silent()
                _ask(redis_server)
            else:
                time.sleep(3)
                assert process.running, process.output()
                proxy.be_silent()
            assert process.wait() == EXIT_CODE, process.output()
            assert "has not come back for 2 s" in process.output()
        finally:
            process.close()


def _ask(redis_server: RedisServer) -> None:
    app = Celery(broker=redis_server.url(), set_as_current=False)
    app.send_task(
        "sharewright.request.create_share",
        args=({"version": 1, "context": {"project_id": "p"}, "size": 1},),
        queue="requests",
    )
