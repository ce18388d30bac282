"""Operations in flight while their saga has got another version, and after a way back."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from tests.support.engine import NOTHING, EngineBench
from worker.db.core.engine import db_now, transaction
from worker.db.operations import recovery
from worker.db.tables.main import operations
from worker.engine.job import Job
from worker.engine.saga import Action, OnCommit, Saga, Sagas, undoable
from worker.model import Phase
from worker.tasks import sagas as today
from worker.tasks.periodic.reconciler import Reconciler

OLD = today.SAGAS


class Ledger:
    """A step put in front of ``create_share``, and what it has done."""

    def __init__(self) -> None:
        self.entered: list[str] = []
        create = OLD.newest("create_share")
        front = undoable(
            Action("enter_in_ledger", self._enter, timeout=10),
            Action("strike_from_ledger", self._strike, timeout=10),
        )
        self.newer = Saga(
            create.name,
            (front, *create.steps),
            failed=create.failed,
            version=create.version + 1,
        )
        self.sagas = Sagas([*OLD, self.newer])

    def _enter(self, job: Job) -> OnCommit | None:
        self.entered.append(job.operation.id)
        return None

    def _strike(self, job: Job) -> OnCommit | None:
        self.entered.remove(job.operation.id)
        return None


def upgrade(bench: EngineBench) -> Ledger:
    ledger = Ledger()
    bench.runtime.sagas = ledger.sagas
    return ledger


def roll_back(bench: EngineBench) -> None:
    bench.runtime.sagas = OLD


def version_of(bench: EngineBench, operation_id: str) -> int:
    return int(bench.operation(operation_id).saga_version)


@pytest.mark.parametrize("steps_before", [0, 1, 2])
def test_what_is_in_flight_goes_on_as_it_began(
    tmp_path: Path, sqlite_url: str, steps_before: int
) -> None:
    with EngineBench(tmp_path, sqlite_url) as bench:
        one = bench.create()
        bench.drive(steps_before)
        ledger = upgrade(bench)
        redrive(bench, one)
        bench.drive()
        assert bench.operation(one).state == "succeeded"
        assert [task for task, _ in bench.steps(one)] == [
            "allocate_network",
            "get_share_server",
            "create_share",
        ]
        assert ledger.entered == []


@pytest.mark.parametrize("steps_before", [1, 2])
def test_what_is_in_flight_is_undone_as_it_began(
    tmp_path: Path, sqlite_url: str, steps_before: int
) -> None:
    with EngineBench(tmp_path, sqlite_url) as bench:
        bench.world.arm("create_share", "fatal_after_effect")
        one = bench.create()
        bench.drive(steps_before)
        upgrade(bench)
        redrive(bench, one)
        bench.drive()
        assert bench.operation(one).state == "failed"
        assert bench.external() == NOTHING
        assert [task for task, _ in bench.steps(one)][-3:] == [
            "delete_share",
            "delete_share_server",
            "deallocate_network",
        ]


@pytest.mark.parametrize("undos_before", [1, 2])
def test_an_undo_under_way_goes_on_as_it_began(
    tmp_path: Path, sqlite_url: str, undos_before: int
) -> None:
    with EngineBench(tmp_path, sqlite_url) as bench:
        bench.world.arm("create_share", "fatal_after_effect")
        one = bench.create()
        bench.drive(3 + undos_before)
        upgrade(bench)
        redrive(bench, one)
        bench.drive()
        assert bench.operation(one).state == "failed"
        assert bench.external() == NOTHING


def test_a_new_operation_has_the_new_version(tmp_path: Path, sqlite_url: str) -> None:
    with EngineBench(tmp_path, sqlite_url) as bench:
        ledger = upgrade(bench)
        one = bench.create()
        bench.drive()
        assert version_of(bench, one) == 2
        assert bench.steps(one)[0] == ("enter_in_ledger", "done")
        assert ledger.entered == [one]
        bench.world.arm("create_share", "fatal_after_effect")
        other = bench.create()
        bench.drive()
        assert [task for task, _ in bench.steps(other)][-1] == "strike_from_ledger"
        assert ledger.entered == [one]


@pytest.mark.parametrize("steps_before", [1, 2, 3])
def test_an_old_worker_parks_what_it_does_not_know(
    tmp_path: Path,
    sqlite_url: str,
    steps_before: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """However often it meets it: that is neither an attempt nor a wait."""
    with EngineBench(tmp_path, sqlite_url, "[engine]\nwait_limit = 0.001\n") as bench:
        upgrade(bench)
        one = bench.create()
        bench.drive(steps_before)
        dispatches = list(bench.dispatches) or redrive(bench, one)
        roll_back(bench)
        before = bench.operation(one)
        action = OLD.actions[before.task]
        for _ in range(10):
            assert not bench.deliver(action, dispatches[-1])
            row = bench.operation(one)
            assert (row.task, row.attempts, row.waiting_since) == (before.task, 0, None)
            assert row.phase == Phase.WAITING.value
            dispatches = redrive_as(bench, one, [*OLD.versions, ("create_share", 2)])
        assert "does not know step" in caplog.text
        upgrade(bench)
        bench.dispatches = dispatches
        bench.drive()
        assert bench.operation(one).state == "succeeded"


def test_an_old_reconciler_leaves_alone_what_it_does_not_know(
    tmp_path: Path, sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so, and publishes the others; a newer one goes on with it."""
    with EngineBench(tmp_path, sqlite_url) as bench:
        known = bench.create()
        upgrade(bench)
        unknown = bench.create()
        roll_back(bench)
        bench.dispatches.clear()  # both messages are lost
        overdue(bench, known, unknown)
        before = bench.operation(unknown)
        with caplog.at_level(logging.WARNING):
            assert reconciler(bench).one_pass() == 1
        assert [one.operation_id for one in bench.dispatches] == [known]
        assert bench.operation(unknown) == before
        assert "1 operations of saga create_share, version 2" in caplog.text
        upgrade(bench)
        assert reconciler(bench).one_pass() == 1
        bench.drive()
        assert bench.operation(known).state == bench.operation(unknown).state == "succeeded"


def test_a_share_with_operations_of_both_versions(tmp_path: Path, sqlite_url: str) -> None:
    """An old worker that ends one promotes the other, which only a newer one can do."""
    with EngineBench(tmp_path, sqlite_url) as bench:
        bench.create()
        bench.drive()
        share = bench.share_row()
        first = bench.ask("extend_share", share_id=share.id, new_size=2)
        extend = OLD.newest("extend_share")
        newer = Sagas([*OLD, dataclasses.replace(extend, version=2)])
        bench.runtime.sagas = newer
        second = bench.ask("extend_share", share_id=share.id, new_size=3)
        assert version_of(bench, second) == 2
        roll_back(bench)
        dispatch = bench.dispatches.pop()
        assert dispatch.operation_id == first
        bench.deliver(OLD.actions["extend_share"], dispatch)
        assert bench.operation(first).state == "succeeded"
        assert [one.operation_id for one in bench.dispatches] == [second]
        bench.runtime.sagas = newer
        bench.drive()
        assert bench.operation(second).state == "succeeded"


def overdue(bench: EngineBench, *ids: str) -> None:
    with transaction(bench.engine) as connection:
        connection.execute(
            update(operations)
            .where(operations.c.id.in_(ids))
            .values(due_at=db_now() - 1, queued_at=db_now() - 100)
        )


def redrive(bench: EngineBench, operation_id: str) -> list[Any]:
    """Publish an operation anew, as this release's reconciler does."""
    bench.dispatches.clear()
    redrive_as(bench, operation_id, bench.runtime.sagas.versions)
    return bench.dispatches


def redrive_as(bench: EngineBench, operation_id: str, known: list[tuple[str, int]]) -> list[Any]:
    overdue(bench, operation_id)
    with transaction(bench.engine) as connection:
        late = recovery.due(connection, (Phase.QUEUED, Phase.WAITING), 10, known=known)
        dispatches = recovery.redrive(connection, late, republish_after=30)
    bench.dispatches += dispatches
    return dispatches


def reconciler(bench: EngineBench) -> Reconciler:
    def nothing(*_: Any) -> int:
        return 0

    return Reconciler(bench.runtime, nothing, nothing, nothing, nothing)
