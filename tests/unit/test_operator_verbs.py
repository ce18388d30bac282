"""Cancel, retry and give-up, at every step and while steps run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.engine import NOTHING, EngineBench
from worker.db.core.engine import transaction
from worker.db.operations import store as operations
from worker.errors import Conflict, LeaseLost, NotFound
from worker.tasks.sagas import ACTIONS

STEPS = ("allocate_network", "get_share_server", "create_share")
UNDOS = ("delete_share", "delete_share_server", "deallocate_network")


FEW = "[engine]\nretry_time = 0.001\nundo_retry_time = 0.0\n"


@pytest.fixture
def bench(tmp_path: Path, sqlite_url: str) -> Iterator[EngineBench]:
    with EngineBench(tmp_path, sqlite_url, FEW) as made:
        yield made


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[], Any]], None]:
    """Do something when the runner passes a failpoint, once."""

    def when(name: str, then: Callable[[], Any]) -> None:
        waiting = [name]

        def passing(passed: str) -> None:
            if passed in waiting:
                waiting.clear()
                then()

        monkeypatch.setattr("worker.engine.runner.failpoint", passing)

    return when


def assert_cancelled(bench: EngineBench, operation_id: str) -> None:
    row = bench.operation(operation_id)
    assert (row.state, row.error["code"], row.phase, row.cancel_reason) == (
        *("cancelled", "cancelled"),
        *(None, None),
    )
    assert bench.results[operation_id]["code"] == "cancelled"
    assert bench.external() == NOTHING
    assert bench.rows("share_servers") == []
    assert bench.rows("share_server_refs") == []
    share = bench.share_row()
    assert (share.status, share.allocated_gib, share.error["code"]) == ("error", 0, "cancelled")


@pytest.mark.parametrize("done", range(3))
def test_a_cancel_between_steps_undoes_from_there(bench: EngineBench, done: int) -> None:
    operation_id = bench.create()
    (dispatch,) = bench.dispatches
    for action in STEPS[:done]:
        assert bench.deliver(ACTIONS[action], dispatch)
    answer = bench.operator("cancel", operation_id)
    assert (answer["id"], answer["cancelled"]) == (operation_id, True)
    assert not bench.deliver(ACTIONS[STEPS[done]], dispatch)
    bench.drive()
    assert_cancelled(bench, operation_id)
    assert [task for task, _ in bench.steps(operation_id)] == [
        *STEPS[: done + 1],
        *UNDOS[2 - done :],
    ]


@pytest.mark.parametrize("where", ["before", "after_effect", "before_commit"])
@pytest.mark.parametrize("step", STEPS)
def test_a_cancel_while_a_step_runs_undoes_it_when_it_ends(
    bench: EngineBench, at: Any, step: str, where: str
) -> None:
    operation_id = bench.create()
    at(f"{step}.{where}", lambda: bench.operator("cancel", operation_id))
    bench.drive()
    assert_cancelled(bench, operation_id)
    assert (step, "failed") in bench.steps(operation_id)


@pytest.mark.parametrize("fault", ["not_ready", "retryable"])
def test_a_cancel_is_met_at_once_by_what_begins_to_wait(
    bench: EngineBench, at: Any, fault: str
) -> None:
    operation_id = bench.create()
    bench.world.arm("get_share_server", fault, seconds=1000)
    at("get_share_server.before", lambda: bench.operator("cancel", operation_id))
    bench.drive()
    assert bench.operation(operation_id).phase == "waiting"
    assert bench.wake_due() == 1, "not after its pause"
    bench.drive()
    assert_cancelled(bench, operation_id)


def test_a_cancel_wakes_what_waits(bench: EngineBench) -> None:
    operation_id = bench.create()
    bench.world.arm("get_share_server", "not_ready", seconds=1000)
    bench.drive()
    assert bench.operation(operation_id).phase == "waiting"
    bench.operator("cancel", operation_id)
    bench.drive()
    assert_cancelled(bench, operation_id)


def test_a_cancel_ends_what_is_queued_behind_another(bench: EngineBench) -> None:
    bench.create()
    bench.drive()
    share_id = bench.share_row().id
    extend = bench.ask("extend_share", share_id=share_id, new_size=2)
    snapshot = bench.ask("create_snapshot", share_id=share_id)
    assert bench.operation(snapshot).state == "pending"
    bench.operator("cancel", snapshot)
    bench.drive()
    assert bench.operation(extend).state == "succeeded"
    assert bench.operation(snapshot).state == "cancelled"
    assert bench.results[snapshot]["code"] == "cancelled"
    assert bench.external()["snapshots"] == 0
    assert [row.status for row in bench.rows("snapshots")] == ["error"]


def test_a_cancel_of_the_builder_lets_a_waiter_build(bench: EngineBench) -> None:
    builder = bench.create()
    (first,) = bench.dispatches
    bench.deliver(ACTIONS["allocate_network"], first)
    bench.dispatches.clear()
    waiter = bench.create()
    bench.drive()
    assert bench.operation(waiter).phase == "waiting"
    bench.operator("cancel", builder)
    bench.deliver(ACTIONS["get_share_server"], first)
    bench.drive()
    assert bench.operation(builder).state == "cancelled"
    assert bench.operation(waiter).state == "succeeded"
    assert bench.external() == {"shares": 1, "snapshots": 0, "servers": 1, "ports": 1}


def refused(bench: EngineBench, verb: str, operation_id: str) -> str:
    before = bench.operation(operation_id)
    with pytest.raises(Conflict) as caught:
        bench.operator(verb, operation_id)
    assert bench.operation(operation_id) == before
    assert operation_id in caught.value.message
    assert caught.value.message.endswith(".")
    return caught.value.message


def test_what_has_ended_or_cannot_be_undone_is_refused(bench: EngineBench) -> None:
    created = bench.create()
    said = refused(bench, "retry", created)
    assert "under way already" in said
    assert "in the queue steps.default.0 and waits for a worker of the group default" in said
    assert "under way" in refused(bench, "give_up", created)
    bench.drive()
    for verb in ("cancel", "retry", "give_up"):
        assert "has succeeded" in refused(bench, verb, created)
    share_id = bench.share_row().id
    deleted = bench.ask("delete_share", share_id=share_id)
    assert "cannot be undone (deleted data" in refused(bench, "cancel", deleted)
    bench.drive()
    bench.world.arm("create_share", "fatal")
    failed = bench.create()
    bench.drive(3)
    assert bench.operation(failed).state == "undoing"
    assert "undone already" in refused(bench, "cancel", failed)
    bench.drive()
    assert "send the request anew" in refused(bench, "retry", failed)
    for verb in ("cancel", "retry", "give_up"):
        with pytest.raises(NotFound):
            bench.operator(verb, "nothing")


def stuck(bench: EngineBench, compensation: str) -> str:
    """A create whose undo fails for good at one of its acts."""
    bench.world.arm("create_share", "fatal_after_effect")
    bench.world.arm(compensation, "retryable", times=1000)
    operation_id = bench.create()
    bench.drive()
    assert bench.operation(operation_id).state == "compensation_failed"
    return operation_id


@pytest.mark.parametrize("compensation", UNDOS)
def test_a_retry_tries_what_could_not_be_undone_now(bench: EngineBench, compensation: str) -> None:
    operation_id = stuck(bench, compensation)
    assert bench.wake_due() == 0, "it would wait for its pause"
    assert "retry it, or give it up" in refused(bench, "cancel", operation_id)
    bench.operator("retry", operation_id)
    assert "under way" in refused(bench, "retry", operation_id)
    bench.drive()
    assert bench.operation(operation_id).state == "compensation_failed"
    bench.world.disarm()
    bench.operator("retry", operation_id)
    bench.drive()
    assert bench.operation(operation_id).state == "failed"
    assert bench.external() == NOTHING
    assert bench.rows("share_servers") == []


def test_a_retry_ends_a_pause_between_attempts(bench: EngineBench) -> None:
    bench.world.arm("create_share", "retryable")
    operation_id = bench.create()
    bench.drive()
    assert (bench.operation(operation_id).phase, bench.wake_due()) == ("waiting", 0)
    bench.operator("retry", operation_id)
    bench.drive()
    assert bench.operation(operation_id).state == "succeeded"


@pytest.mark.parametrize("compensation", UNDOS)
def test_what_is_given_up_is_on_record_and_the_audits(
    bench: EngineBench, compensation: str
) -> None:
    operation_id = stuck(bench, compensation)
    answer = bench.operator("give_up", operation_id)
    assert answer["state"] == "given_up"
    assert any("share server" in thing for thing in answer["may_be_left"])
    row = bench.operation(operation_id)
    assert (row.state, row.phase, row.due_at, row.task) == ("given_up", None, None, "")
    assert "Given up by an operator" in row.error["message"]
    assert bench.steps(operation_id)[-1][1] == "given up"
    assert "was given up" in refused(bench, "give_up", operation_id)
    assert (bench.rows("share_servers"), bench.rows("share_server_refs")) == ([], [])
    assert bench.external() != NOTHING
    bench.world.disarm()
    bench.audit()
    bench.age()
    bench.audit(repair=True)
    assert bench.external() == NOTHING
    # The share in error can be deleted, and the next create works.
    bench.ask("delete_share", share_id=bench.share_row().id)
    bench.drive()
    again = bench.create()
    bench.drive()
    assert bench.operation(again).state == "succeeded"


@pytest.mark.parametrize("what", ["share", "snapshot", "clean_up"])
def test_a_deletion_that_is_given_up_leaves_its_row(bench: EngineBench, what: str) -> None:
    bench.create()
    bench.drive()
    share_id = bench.share_row().id
    if what == "snapshot":
        bench.ask("create_snapshot", share_id=share_id)
        bench.drive()
        bench.world.arm("delete_snapshot", "fatal", times=1000)
        operation_id = bench.ask("delete_snapshot", snapshot_id=bench.rows("snapshots")[0].id)
    else:
        call = "delete_share" if what == "share" else "delete_share_server"
        bench.world.arm(call, "fatal", times=1000)
        operation_id = bench.ask("delete_share", share_id=share_id)
    bench.drive()
    if what == "clean_up":
        (operation_id,) = (
            row.id for row in bench.rows("operations") if row.verb == "clean_up_share_server"
        )
    assert bench.operation(operation_id).state == "compensation_failed"
    assert bench.operator("give_up", operation_id)["may_be_left"]
    bench.drive()
    table = {"share": "shares", "snapshot": "snapshots", "clean_up": "share_servers"}[what]
    bench.world.disarm()
    # Giving the share up let its server's clean-up begin, which its share is in the way of.
    bench.pass_time()
    bench.drive()
    assert bench.rows(table) == []
    bench.audit()
    bench.age()
    bench.audit(repair=True)
    bench.pass_time()
    bench.drive()
    left = {**NOTHING, "shares": 1, "servers": 1, "ports": 1} if what == "snapshot" else NOTHING
    assert bench.external() == left


def test_a_worker_that_is_on_it_when_it_is_given_up_writes_nothing(
    bench: EngineBench, at: Any
) -> None:
    operation_id = stuck(bench, "delete_share")
    bench.world.disarm()
    bench.operator("retry", operation_id)
    at("delete_share.after_effect", lambda: bench.operator("give_up", operation_id))
    bench.drive()
    assert bench.operation(operation_id).state == "given_up"
    assert bench.steps(operation_id)[-1][1] == "given up"


def test_a_condemned_step_finishes_only_backwards(bench: EngineBench) -> None:
    """What the journal promises to the runner: the verdict, not a lost lease."""
    operation_id = bench.create()
    (dispatch,) = bench.dispatches
    with transaction(bench.engine) as connection:
        held = operations.claim(
            *(connection, operation_id, dispatch.dispatch, "allocate_network"), worker="w", lease=30
        )
    assert held is not None
    cancel_reason = {"code": "cancelled", "message": "No.", "object": "", "field": ""}
    with transaction(bench.engine) as connection:
        assert (
            operations.request_cancel(connection, operation_id, cancel_reason, republish_after=30)
            == []
        )
    with pytest.raises(Exception, match=r"No\.") as caught, transaction(bench.engine) as connection:
        operations.advance(
            connection, held, task="get_share_server", position=1, republish_after=30
        )
    assert not isinstance(caught.value, LeaseLost)
    with transaction(bench.engine) as connection:
        operations.start_compensation(
            connection, held, task="deallocate_network", error=cancel_reason, republish_after=30
        )
    assert bench.operation(operation_id).cancel_reason is None


def test_all_of_it_on_postgresql(tmp_path: Path, postgres_url: str, at: Any) -> None:
    with EngineBench(tmp_path, postgres_url, FEW) as bench:
        cancelled = bench.create()
        at("create_share.after_effect", lambda: bench.operator("cancel", cancelled))
        bench.drive()
        assert_cancelled(bench, cancelled)
        operation_id = stuck(bench, "delete_share_server")
        bench.operator("retry", operation_id)
        bench.drive()
        assert bench.operator("give_up", operation_id)["state"] == "given_up"
        bench.world.disarm()
        bench.audit()
        bench.age()
        bench.audit(repair=True)
        assert bench.external() == NOTHING
