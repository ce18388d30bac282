"""What an operator does by the command, on whole deployments: audit, cancel, give up, replay."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from scheduler.service.dead_letters import drop, replay
from tests.crash.matrix.points import all_points
from tests.support.fakes import Fakes
from tests.support.pace import limit, slowed
from tests.support.services import ROOT, RedisServer, python, wait_until
from worker.config import load
from worker.db import shares
from worker.db.core.engine import reading, transaction
from worker.db.share_servers import store as servers
from worker.db.tables import main as tables
from worker.db.tables.audits import audit_findings
from worker.db.tables.main import dead_letters, operations, share_servers
from worker.errors import Conflict, NotFound, RequestFailed
from worker.failpoints import TOKENS_VARIABLE, VARIABLE


def command(deployment: Fakes, *words: str, code: int = 0) -> Any:
    """Run the command; return what it prints as JSON, or its error's sentence."""
    done = subprocess.run(
        python("scheduler.cli", "--json", *words),
        capture_output=True,
        text=True,
        timeout=limit(),
        check=False,
        cwd=ROOT,
        env={**os.environ, **deployment.env},
    )
    assert done.returncode == code, (done.stdout, done.stderr)
    document = json.loads(done.stdout)
    return document if code == 0 else document["error"]["message"]


def orphan(deployment: Fakes, network: str) -> None:
    """Rows of a share and its server that go while everything stays outside."""
    made = deployment.client.result(deployment.create(network), timeout=limit())
    with transaction(deployment.engine) as connection:
        servers.release(connection, made["id"], deleter_id="-")
        shares.remove_share(connection, made["id"])
        servers.remove(connection, made["share_server_id"])


def age(deployment: Fakes) -> None:
    with transaction(deployment.engine) as connection:
        connection.execute(
            update(audit_findings).values(first_seen=audit_findings.c.first_seen - 1000)
        )


@pytest.fixture
def fakes(
    tmp_path: Path, sqlite_url: str, redis_server: RedisServer, request: pytest.FixtureRequest
) -> Iterator[Fakes]:
    """A deployment that is not started; a parameter holds further settings of the engine."""
    engine = {"undo_retry_time": 0.1, "report_interval": 1.0} | getattr(request, "param", {})
    deployment = Fakes(tmp_path, sqlite_url, redis_server, engine=engine)
    try:
        yield deployment
    finally:
        deployment.close()


AUDITED = {"max_crashes": 20}
"""It is killed at every point."""


@pytest.mark.parametrize("fakes", [AUDITED], indirect=True)
def test_the_audit_by_command_and_a_worker_killed_everywhere_in_its_repair(
    fakes: Fakes, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    # It fails only where a compensation does: its own failures are findings.
    points = {point for point in all_points() if point.startswith("audit_backend.")}
    points -= {"audit_backend.failed"}
    assert len(points) >= 8
    fakes.start(
        **{
            VARIABLE: ";".join(f"{point}=kill" for point in sorted(points)),
            TOKENS_VARIABLE: str(tokens),
        }
    )
    network = fakes.network()
    kept = fakes.client.result(fakes.create(network), timeout=limit())
    orphan(fakes, fakes.network(cidr="10.1.0.0/24"))
    found = command(fakes, "audit")
    (backend,) = found["backends"]
    # A share, its server, its port, and its network.
    assert (backend["backend"], backend["orphan"], backend["removed"]) == ("fake", 4, 0)
    assert {one["kind"] for one in found["findings"]} == {"share", "server", "port", "network"}
    assert len(fakes.world.servers()) == 2
    age(fakes)
    for point in points:
        (tokens / f"{point}@1").touch()
    (repaired,) = command(fakes, "audit", "--backend", "fake", "--repair")["backends"]
    assert repaired["orphan"] == 0
    # Whoever is killed after the commit comes no further: that is the next one's.
    assert {left.name for left in tokens.iterdir()} == {"audit_backend.after_publish@1"}
    command(fakes, "audit", "--backend", "fake", "--repair")
    wait_until(lambda: not list(tokens.iterdir()), "the last kill has happened")
    assert [row["id"] for row in fakes.world.shares()] == [kept["id"]]
    assert len(fakes.world.servers()) == len(fakes.world.ports()) == 1
    with pytest.raises(RequestFailed, match="No backend other"):
        fakes.ask("audit_backend", admin=True, backend="other")


def test_the_periodic_audit(tmp_path: Path, sqlite_url: str, redis_server: RedisServer) -> None:
    engine = {"report_interval": 1.0, "audit_interval": 2.0}
    settings = "audit_repair = true\n"
    deployment = Fakes(tmp_path, sqlite_url, redis_server, engine=engine)
    text = deployment.config_path.read_text()
    deployment.config_path.write_text(text.replace("[engine]\n", f"[engine]\n{settings}"))
    try:
        deployment.start()
        kept = deployment.client.result(deployment.create(deployment.network()), timeout=limit())
        orphan(deployment, deployment.network(cidr="10.1.0.0/24"))

        def is_gone() -> bool:
            age(deployment)  # a quarter of an hour is not waited for
            return [row["id"] for row in deployment.world.shares()] == [kept["id"]]

        wait_until(is_gone, "periodic audits have removed the orphans")
    finally:
        deployment.close()


def test_cancel_retry_and_give_up_by_command(fakes: Fakes) -> None:
    fakes.start()
    network = fakes.network()
    fakes.world.arm("get_share_server", "hang", seconds=slowed(8.0))
    operation_id = fakes.create(network)
    wait_until(lambda: bool(fakes.world.calls("get_share_server")), "the step is in its call")
    # By message: the command may take longer to start than the step's call lasts.
    answer = fakes.ask("cancel_operation", admin=True, operation_id=operation_id)
    assert (answer["id"], answer["cancelled"]) == (operation_id, True)
    assert fakes.failure(operation_id).code == "cancelled"
    fakes.settle()
    fakes.assert_nothing_external()
    assert "was cancelled" in command(fakes, "operation", "cancel", operation_id, code=3)

    fakes.world.arm("create_share", "fatal_after_effect")
    fakes.world.arm("delete_share", "retryable", times=1000)
    stuck = fakes.create(network)
    assert "Undoing it failed" in fakes.failure(stuck).message
    fakes.ask("retry_operation", admin=True, operation_id=stuck)
    assert command(fakes, "operation", "give-up", stuck)["state"] == "given_up"
    wait_until(lambda: "Given up" in fakes.failure(stuck).message, "the result says so too")
    fakes.world.disarm()
    fakes.ask("audit_backend", admin=True, backend="fake")
    age(fakes)
    fakes.ask("audit_backend", admin=True, backend="fake", repair=True)
    fakes.assert_nothing_external()


def test_poison_is_replayed_once_and_dropped(fakes: Fakes) -> None:
    """A request that was too long for the configuration of yesterday."""
    text = fakes.config_path.read_text()
    fakes.config_path.write_text(text.replace("[broker]\n", "[broker]\nmax_message_bytes = 2048\n"))
    fakes.start()
    network = fakes.network()
    long = fakes.payload(size=1, share_network_id=network, description="x" * 1300)
    fakes.client.send("create_share", long, operation_id="too-long")
    with fakes.redis.client() as client:
        client.lpush("requests", b"no message")

    def kept() -> list[Any]:
        with reading(fakes.engine) as connection:
            return list(connection.execute(select(dead_letters).order_by(dead_letters.c.size)))

    wait_until(lambda: len(kept()) == 2, "both are kept")
    none, request = kept()
    listed = command(fakes, "dead-letter", "list")["dead_letters"]
    assert {one["id"]: one["replayable"] for one in listed} == {none.id: False, request.id: True}
    config = load(fakes.config_path)
    with pytest.raises(Conflict, match="not kept whole"):
        replay(config, none.id)
    # It is poison still: it is set aside anew, and can be replayed anew.
    assert replay(config, request.id) == "requests"
    wait_until(
        lambda: any(row.replayed_at is None and row.size > 2048 for row in kept()),
        "it is kept again",
    )
    again = next(row for row in kept() if row.replayed_at is None and row.size > 2048)
    fakes.processes["scheduler"].close()
    fakes.config_path.write_text(text)
    fakes.role("scheduler")
    command(fakes, "dead-letter", "replay", str(again.id))
    with pytest.raises(Conflict, match="replayed already"):
        replay(config, again.id)
    assert fakes.client.result("too-long", timeout=limit())["status"] == "available"
    with reading(fakes.engine) as connection:
        made = connection.execute(
            select(operations.c.id).where(operations.c.verb == "create_share")
        ).all()
    assert [row.id for row in made] == ["too-long"]
    command(fakes, "dead-letter", "drop", str(none.id))
    assert none.id not in {row.id for row in kept()}
    with pytest.raises(NotFound, match="No message"):
        drop(config, none.id)
    assert fakes.count(tables.shares) == fakes.count(share_servers) == 1


def test_a_step_that_kills_its_worker_is_stopped_and_undone(
    tmp_path: Path, sqlite_url: str, redis_server: RedisServer
) -> None:
    deployment = Fakes(tmp_path, sqlite_url, redis_server, engine={"max_crashes": 2})
    try:
        deployment.start(**{VARIABLE: "create_share.after_effect=kill"})
        failed = deployment.failure(deployment.create(deployment.network()))
        assert failed.code == "attempts_exhausted"
        assert "create_share" in failed.message
        deployment.settle()
        deployment.assert_nothing_external()
        assert len(deployment.world.calls("create_share")) == 2
    finally:
        deployment.close()
