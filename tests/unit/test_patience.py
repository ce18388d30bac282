"""How long a step that fails is tried again, and what is tried on until it is known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from tests.support.engine import NOTHING, EngineBench
from worker.db import shares
from worker.db.core.engine import db_now, reading, transaction
from worker.db.operations import store
from worker.db.tables.main import access_rules, operations, storage_pools
from worker.errors import Conflict
from worker.model import Phase, RequestContext

o = operations.c


@pytest.fixture
def bench(tmp_path: Path, sqlite_url: str) -> Iterator[EngineBench]:
    settings = "[engine]\nretry_time = 600.0\nundo_retry_time = 900.0\nmax_crashes = 3\n"
    with EngineBench(tmp_path, sqlite_url, settings) as made:
        yield made


def fail_for(bench: EngineBench, operation_id: str, seconds: float) -> None:
    """Let its step fail, again and again, for as long by the database's clock."""
    bench.drive()
    for _ in range(10):
        with transaction(bench.engine) as connection:
            connection.execute(
                update(operations)
                .where(o.id == operation_id)
                .values(failing_since=o.failing_since - seconds / 10)
            )
        bench.pass_time()
        bench.drive()


def share_with_rule(bench: EngineBench) -> tuple[str, str]:
    bench.create()
    bench.drive()
    share_id = str(bench.share_row().id)
    allowed = bench.ask(
        "allow_access",
        share_id=share_id,
        access_type="ip",
        access_to="10.0.0.1",
        access_level="rw",
    )
    bench.drive()
    return share_id, str(bench.results[allowed]["id"])


def reserved(bench: EngineBench) -> int:
    with reading(bench.engine) as connection:
        return int(connection.execute(select(storage_pools.c.allocated_gib)).scalar_one())


@pytest.mark.parametrize("call", ["allocate_network", "get_share_server", "create_share"])
def test_an_outage_of_two_minutes_fails_no_create(bench: EngineBench, call: str) -> None:
    bench.world.arm(call, "retryable", times=11)
    one = bench.create()
    fail_for(bench, one, 120.0)
    row = bench.operation(one)
    assert (row.state, row.failures) == ("running", 11)
    bench.pass_time()
    bench.drive()
    assert bench.operation(one).state == "succeeded"


def test_what_fails_for_longer_is_undone(bench: EngineBench) -> None:
    bench.world.arm("create_share", "retryable", times=1000)
    one = bench.create()
    fail_for(bench, one, 700.0)
    assert bench.operation(one).state == "failed"
    assert bench.results[one]["code"] == "backend_unavailable"
    assert bench.external() == NOTHING


def test_a_wait_ends_a_time_of_failures(bench: EngineBench) -> None:
    """The backend answered: what fails after it has all its time again."""
    bench.world.arm("get_share_server", "retryable", times=11)
    one = bench.create()
    fail_for(bench, one, 500.0)
    bench.world.arm("get_share_server", "not_ready")
    bench.pass_time()
    bench.drive()
    row = bench.operation(one)
    assert (row.phase, row.failures, row.failing_since) == (Phase.WAITING.value, 0, None)
    bench.world.arm("get_share_server", "retryable", times=11)
    bench.pass_time()
    fail_for(bench, one, 500.0)
    assert bench.operation(one).state == "running"


def test_the_next_step_has_its_own_time(bench: EngineBench) -> None:
    bench.world.arm("allocate_network", "retryable", times=11)
    one = bench.create()
    fail_for(bench, one, 500.0)
    bench.world.arm("get_share_server", "retryable", times=11)
    bench.pass_time()
    fail_for(bench, one, 500.0)
    row = bench.operation(one)
    assert (row.state, row.task, row.failures) == ("running", "get_share_server", 11)


def test_a_step_that_kills_its_worker_is_stopped(bench: EngineBench) -> None:
    """Failures that were reported are no crashes."""
    bench.world.arm("allocate_network", "retryable", times=11)
    one = bench.create()
    fail_for(bench, one, 60.0)
    for _ in range(3):
        bench.pass_time()
        die(bench)
    assert bench.operation(one).state == "running"
    bench.pass_time()
    bench.drive()
    assert bench.operation(one).state == "failed"
    assert bench.results[one]["code"] == "attempts_exhausted"
    assert bench.external() == NOTHING


def die(bench: EngineBench) -> None:
    """Claim what is to be done, and leave it to its lease, which is over."""
    (dispatch,) = bench.dispatches
    bench.dispatches.clear()
    with transaction(bench.engine) as connection:
        assert store.claim(
            connection, dispatch.operation_id, dispatch.dispatch, dispatch.task, worker="w", lease=0
        )
        connection.execute(
            update(operations)
            .where(o.id == dispatch.operation_id)
            .values(phase=Phase.WAITING.value, due_at=db_now())
        )


def extend_in_an_outage(bench: EngineBench, share_id: str) -> str:
    bench.world.arm("extend_share", "retryable", times=1000)
    bench.world.arm("share_size", "retryable", times=1000)
    one = bench.ask("extend_share", share_id=share_id, new_size=5)
    fail_for(bench, one, 1000.0)
    return one


def test_an_unknown_size_is_looked_up_until_it_is_known(bench: EngineBench) -> None:
    """Meanwhile the larger size stays reserved, and a client can be shut out."""
    share_id, rule_id = share_with_rule(bench)
    one = extend_in_an_outage(bench, share_id)
    row = bench.share_row()
    assert (bench.operation(one).state, row.status) == ("compensation_failed", "error")
    assert "unknown" in row.error["message"]
    assert reserved(bench) == row.allocated_gib == 5
    denied = bench.ask("deny_access", share_id=share_id, access_id=rule_id)
    bench.drive()
    assert bench.operation(denied).state == "succeeded"
    assert bench.rows(access_rules.name) == []
    with pytest.raises(Conflict):
        bench.ask(
            "allow_access",
            share_id=share_id,
            access_type="ip",
            access_to="10.0.0.2",
            access_level="rw",
        )
    bench.pass_time()
    bench.drive()
    assert bench.share_row().status == "error", "still unknown"
    bench.world.disarm()
    bench.pass_time()
    bench.drive()
    row = bench.share_row()
    assert (row.status, row.size, row.error, row.allocated_gib) == ("available", 1, None, 1)
    assert reserved(bench) == 1
    assert bench.operation(one).state == "failed"
    assert bench.results[one]["code"] == "backend_unavailable"
    assert bench.world.calls("extend_share", effect=True) == []


def test_an_extend_that_went_through_unheard_is_found(bench: EngineBench) -> None:
    share_id, _ = share_with_rule(bench)
    one = extend_in_an_outage(bench, share_id)
    grown = bench.runtime.manager("fake")
    row = bench.share_row()
    bench.world.disarm()
    _grow(bench, grown, row)
    bench.pass_time()
    bench.drive()
    row = bench.share_row()
    assert (row.status, row.size, row.allocated_gib) == ("available", 5, 5)
    assert bench.operation(one).state == "failed"


def _grow(bench: EngineBench, manager: Any, row: Any) -> None:
    """Somebody extends it outside."""
    with reading(bench.engine) as connection:
        _, server = shares.share_and_server(connection, row.id)
    manager.extend_share(
        RequestContext(project_id="p1", guard=lambda: None), shares.share_of(row), 5, server
    )


def test_deleting_a_share_ends_all_that_had_failed_on_it(bench: EngineBench) -> None:
    """An older delete, and a deny; an extend whose size was unknown has ended before."""
    share_id, rule_id = share_with_rule(bench)
    extend = extend_in_an_outage(bench, share_id)
    bench.world.arm("update_access", "retryable", times=1000)
    deny = bench.ask("deny_access", share_id=share_id, access_id=rule_id)
    fail_for(bench, deny, 1000.0)
    bench.world.arm("delete_share", "retryable", times=12)
    delete = bench.ask("delete_share", share_id=share_id)
    fail_for(bench, delete, 1000.0)
    failed = [bench.operation(one).state for one in (deny, delete)]
    assert failed == ["compensation_failed"] * 2
    assert bench.operation(extend).state == "failed", "nobody needs the size any more"
    bench.world.disarm()
    again = bench.ask("delete_share", share_id=share_id)
    # Nobody waits for the next slow attempt.
    bench.drive()
    assert bench.operation(again).state == "succeeded"
    assert bench.operation(delete).state == "succeeded"
    assert bench.results[delete] == {"id": share_id, "status": "deleted"}
    assert bench.operation(deny).state == "succeeded"
    assert bench.external() == NOTHING


def test_deleting_a_snapshot_ends_an_older_delete(bench: EngineBench) -> None:
    share_id, _ = share_with_rule(bench)
    bench.ask("create_snapshot", share_id=share_id)
    bench.drive()
    (snapshot,) = bench.rows("snapshots")
    bench.world.arm("delete_snapshot", "retryable", times=11)
    first = bench.ask("delete_snapshot", snapshot_id=snapshot.id)
    fail_for(bench, first, 1000.0)
    assert bench.operation(first).state == "compensation_failed"
    second = bench.ask("delete_snapshot", snapshot_id=snapshot.id)
    bench.drive()
    for one in (first, second):
        assert bench.operation(one).state == "succeeded"
        assert bench.results[one] == {"id": snapshot.id, "status": "deleted"}
