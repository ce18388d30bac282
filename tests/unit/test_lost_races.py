"""A step whose transaction loses a race or meets an outage: no attempt, and no lease waited for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from tests.support.engine import EngineBench
from worker.db.core.outages import patiently
from worker.db.share_servers import store as servers
from worker.model import Phase

DEADLOCK = "DO $$ BEGIN RAISE EXCEPTION 'lost' USING ERRCODE = '40P01'; END $$"


@pytest.fixture
def bench(tmp_path: Path, postgres_url: str) -> Iterator[EngineBench]:
    bench = EngineBench(tmp_path, postgres_url)
    yield bench
    bench.engine.dispose()


class Losing:
    """A function of the database's that loses a race so many times before it is let through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, times: int) -> None:
        self.left, self.through = times, getattr(module, name)
        monkeypatch.setattr(module, name, self)

    def __call__(self, connection: Connection, *args: Any, **options: Any) -> Any:
        if self.left:
            self.left -= 1
            connection.exec_driver_sql(DEADLOCK)
        return self.through(connection, *args, **options)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("join", "allocate_network"),
        ("allocated", "allocate_network"),
        ("built", "get_share_server"),
    ],
)
def test_a_transaction_that_loses_a_race_is_run_again_at_once(
    bench: EngineBench, monkeypatch: pytest.MonkeyPatch, name: str, step: str
) -> None:
    losing = Losing(monkeypatch, servers, name, times=2)
    operation_id = bench.create()
    bench.drive()
    assert losing.left == 0
    assert bench.operation(operation_id).state == "succeeded"
    assert bench.steps(operation_id).count((step, "done")) == 1
    assert {row.attempt for row in bench.rows("operation_steps")} == {1}


def test_an_outage_that_outlasts_patience_is_not_an_attempt(
    bench: EngineBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.engine.job.patiently", lambda: patiently(0.0))
    Losing(monkeypatch, servers, "join", times=2)
    operation_id = bench.create()
    bench.drive()
    row = bench.operation(operation_id)
    assert (row.state, row.phase, row.attempts) == ("running", Phase.WAITING, 0)
    bench.pass_time()
    bench.drive()
    assert bench.operation(operation_id).state == "succeeded"
    assert {one.attempt for one in bench.rows("operation_steps")} == {1}
