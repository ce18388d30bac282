"""Operations of a backend whose host has another name now, or that is not configured any more."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from tests.support.engine import EngineBench
from worker.config import Config
from worker.db.core.engine import db_now, transaction
from worker.db.tables.main import operations, share_servers
from worker.errors import ConfigurationError
from worker.model import Phase
from worker.tasks.periodic.reconciler import Reconciler

OLD, NEW = "steps.default.0", "steps.elsewhere.0"
o = operations.c
SETTINGS = "[engine]\nunused_share_server_cleanup_interval = 60.0\n"


@pytest.fixture
def bench(tmp_path: Path, sqlite_url: str) -> Iterator[EngineBench]:
    with EngineBench(tmp_path, sqlite_url, SETTINGS) as made:
        yield made


def move(bench: EngineBench) -> None:
    """Let the backend's steps go to another queue from now on."""
    backend = bench.config.backends["fake"].model_copy(update={"group": "elsewhere"})
    use(bench, bench.config.model_copy(update={"backends": {"fake": backend}}))


def remove(bench: EngineBench) -> None:
    use(bench, bench.config.model_copy(update={"backends": {}}))


def use(bench: EngineBench, config: Config) -> None:
    bench.config = bench.runtime.config = config


def reconciler(bench: EngineBench) -> Reconciler:
    def nothing(*_: Any) -> None:
        return None

    return Reconciler(bench.runtime, lambda _queue: 1000, nothing, nothing, nothing)


def overdue(bench: EngineBench, operation_id: str, phase: Phase) -> None:
    with transaction(bench.engine) as connection:
        connection.execute(
            update(operations)
            .where(o.id == operation_id)
            .values(phase=phase.value, due_at=db_now() - 1)
        )


@pytest.mark.parametrize("phase", list(Phase))
def test_what_is_overdue_goes_to_the_queue_of_today(bench: EngineBench, phase: Phase) -> None:
    """Its message lies in a queue that nobody reads, which is never empty."""
    one = bench.create()
    bench.dispatches.clear()
    overdue(bench, one, phase)
    move(bench)
    assert reconciler(bench).one_pass() == 1
    assert [dispatch.queue for dispatch in bench.dispatches] == [NEW]
    bench.drive()
    assert (bench.operation(one).state, bench.operation(one).queue) == ("succeeded", NEW)


def test_retry_sends_it_there_at_once(bench: EngineBench) -> None:
    one = bench.create()
    bench.dispatches.clear()
    move(bench)
    bench.operator("retry", one)
    assert [dispatch.queue for dispatch in bench.dispatches] == [NEW]
    bench.drive()
    assert bench.operation(one).state == "succeeded"


def test_cancel_has_an_effect(bench: EngineBench) -> None:
    one = bench.create()
    bench.dispatches.clear()
    move(bench)
    assert bench.operator("cancel", one)["cancelled"]
    overdue(bench, one, Phase.QUEUED)
    reconciler(bench).one_pass()
    bench.drive()
    assert bench.operation(one).state == "cancelled"


@pytest.mark.parametrize("verb", ["retry", "cancel"])
def test_nothing_is_done_without_the_backend(bench: EngineBench, verb: str) -> None:
    one = bench.create()
    remove(bench)
    with pytest.raises(ConfigurationError, match="Backend 'fake' is not in the configuration"):
        bench.operator(verb, one)


def test_what_a_removed_backend_leaves_stops_nobody(
    bench: EngineBench, caplog: pytest.LogCaptureFixture
) -> None:
    """An idle share server, an operation; each is told once, and all else goes on."""
    made = bench.create()
    bench.drive()
    bench.ask("delete_share", share_id=bench.operation(made).resource_id)
    bench.drive()
    with transaction(bench.engine) as connection:
        connection.execute(update(share_servers).values(idle_since=db_now() - 61))
    left = bench.create()
    overdue(bench, left, Phase.WAITING)
    remove(bench)
    one = reconciler(bench)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            one._next_housekeeping = 0.0
            one.one_pass()
    (record,) = caplog.records
    assert record.getMessage().startswith("Backend fake is not in the configuration")
    assert [server.status for server in bench.rows("share_servers")] == ["active"]


def test_a_step_without_its_backend_says_so(bench: EngineBench) -> None:
    one = bench.create()
    remove(bench)
    bench.drive()
    row = bench.operation(one)
    assert row.error["code"] == "configuration"
    assert "'fake'" in row.error["message"]
