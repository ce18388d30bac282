"""Work that takes longer than a step may: it goes on outside, and steps look at it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engine import NOTHING, EngineBench
from worker.engine.saga import Saga, Sagas
from worker.tasks.sagas import SAGAS

STEP_SECONDS = 1.0
COPY_SECONDS = 10 * STEP_SECONDS
SETTINGS = (
    f"[engine]\nwait_limit = {STEP_SECONDS}\n"
    f"[backends.fake.driver]\ncopy_seconds = {COPY_SECONDS}\n"
)


def short(saga: Saga) -> Saga:
    """The same saga, whose step ``create_share`` may take no longer than ``STEP_SECONDS``."""
    return dataclasses.replace(
        saga,
        steps=tuple(
            dataclasses.replace(step, do=_SHORT) if step.do.name == _SHORT.name else step
            for step in saga.steps
        ),
    )


_SHORT = dataclasses.replace(SAGAS.actions["create_share"], timeout=STEP_SECONDS)


@pytest.fixture
def bench(tmp_path: Path, sqlite_url: str) -> Iterator[EngineBench]:
    with EngineBench(tmp_path, sqlite_url, SETTINGS) as made:
        made.runtime.sagas = Sagas(short(saga) for saga in SAGAS)
        yield made


def copy(bench: EngineBench) -> str:
    """Begin to copy a snapshot into a new share."""
    bench.create()
    bench.drive()
    bench.ask("create_snapshot", share_id=bench.share_row().id)
    bench.drive()
    (snapshot,) = bench.rows("snapshots")
    return bench.ask(
        "create_share", size=1, share_network_id=bench.network_id, snapshot_id=snapshot.id
    )


def test_a_copy_of_ten_times_the_steps_time_ends(bench: EngineBench) -> None:
    """It is begun once, and no step waits for it."""
    one = copy(bench)
    began = time.monotonic()
    for _ in range(100):
        bench.drive()
        if bench.operation(one).state != "running":
            break
        time.sleep(STEP_SECONDS / 2)
        bench.pass_time()
    assert bench.operation(one).state == "succeeded", bench.results
    assert time.monotonic() - began >= COPY_SECONDS
    assert bench.steps(one)[-1] == ("create_share", "done")
    assert len(bench.world.calls("create_share_from_snapshot")) > 2


def test_a_copy_is_given_up_with_its_share(bench: EngineBench) -> None:
    one = copy(bench)
    bench.drive()
    bench.ask("delete_share", share_id=bench.operation(one).resource_id)
    bench.drive()
    assert bench.operation(one).state == "cancelled"
    for row in bench.rows("shares"):
        bench.ask("delete_snapshot", snapshot_id=bench.rows("snapshots")[0].id)
        bench.drive()
        bench.ask("delete_share", share_id=row.id)
        bench.drive()
    assert bench.external() == NOTHING
