"""What the reconciler takes for lost, and what only waits for its turn."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from tests.support.deployment import FAKE_BACKEND
from tests.support.engine import EngineBench
from worker.db.core.engine import db_now, reading, transaction
from worker.db.operations import recovery
from worker.db.operations import store as journal
from worker.db.tables.main import operations
from worker.model import Phase
from worker.tasks.periodic.reconciler import Reconciler

QUEUE = "steps.default.0"
DEAD = "steps.dead.0"
DOWN_BACKEND = FAKE_BACKEND.replace("[backends.fake]", '[backends.down]\ngroup = "dead"')
"""A second backend, whose worker group reads :data:`DEAD`."""
LEASE = 20.0
BATCH = 300
o = operations.c


@pytest.fixture
def bench(tmp_path: Path, sqlite_url: str) -> Iterator[EngineBench]:
    with EngineBench(tmp_path, sqlite_url, DOWN_BACKEND) as made:
        yield made


def reconciler(bench: EngineBench, depths: Mapping[str, int]) -> Reconciler:
    def nothing(*_: Any) -> None:
        return None

    return Reconciler(bench.runtime, lambda queue: depths[queue], nothing, nothing, nothing)


def queued(bench: EngineBench, count: int = 1, **values: Any) -> list[str]:
    """Operations whose message was published long ago; return their ids."""
    ids = [str(uuid.uuid4()) for _ in range(count)]
    age = values.pop("age", 100.0)
    common = {
        "project_id": "p1",
        "verb": "create_share",
        "resource_kind": "share",
        "payload": {},
        "payload_digest": "",
        "saga": "create_share",
        "backend": "fake",
        "queue": QUEUE,
        "state": "running",
        "phase": Phase.QUEUED.value,
        "task": "allocate_network",
        "dispatch": 1,
        "accepted_at": 0.0,
    }
    if values.get("queue") == DEAD:
        common["backend"] = "down"
    with transaction(bench.engine) as connection:
        connection.execute(
            insert(operations).values(queued_at=db_now() - age, due_at=db_now() - 1),
            [{"id": one, "resource_id": one, **common, **values} for one in ids],
        )
    return ids


def claimed(bench: EngineBench, age: float, **values: Any) -> str:
    """An operation whose step is in hand; its message was published ``age`` seconds ago."""
    (one,) = queued(bench, age=age, **values)
    with transaction(bench.engine) as connection:
        connection.execute(
            update(operations)
            .where(o.id == one)
            .values(phase=Phase.LEASED.value, claimed_at=db_now(), due_at=db_now() + LEASE)
        )
    return one


def finish(bench: EngineBench, operation_id: str) -> None:
    with transaction(bench.engine) as connection:
        connection.execute(
            update(operations)
            .where(o.id == operation_id)
            .values(phase=None, due_at=None, state="succeeded")
        )


def row(bench: EngineBench, operation_id: str) -> Any:
    with reading(bench.engine) as connection:
        return connection.execute(
            select(o.dispatch, o.redrives, (o.due_at - db_now()).label("left")).where(
                o.id == operation_id
            )
        ).one()


def later_step(**values: Any) -> dict[str, Any]:
    return {"position": 1, "task": "get_share_server", **values}


def redriven(bench: EngineBench, *ids: str) -> list[bool]:
    return [row(bench, one).dispatch == 2 for one in ids]


def test_a_first_step_is_lost_when_a_newer_one_was_claimed(bench: EngineBench) -> None:
    (older,), (newer,) = queued(bench, age=100), queued(bench, age=40)
    claimed(bench, age=50)
    assert reconciler(bench, {QUEUE: 1000}).one_pass() == 1
    assert redriven(bench, older, newer) == [True, False]
    assert row(bench, newer).left > 0
    assert [one.operation_id for one in bench.dispatches] == [older]


def test_a_later_step_is_lost_when_a_first_one_was_claimed_after_it(bench: EngineBench) -> None:
    """It would have gone first, however long the first one had been queued."""
    (lost,) = queued(bench, age=30, **later_step())
    (waits,) = queued(bench, age=30)
    claimed(bench, age=200)
    assert reconciler(bench, {QUEUE: 1000}).one_pass() == 1
    assert redriven(bench, lost, waits) == [True, False]


def test_a_claimed_later_step_says_nothing_of_first_ones(bench: EngineBench) -> None:
    (first,) = queued(bench, age=100)
    (later,) = queued(bench, age=100, **later_step())
    claimed(bench, age=1, **later_step())
    assert reconciler(bench, {QUEUE: 1000}).one_pass() == 1
    assert redriven(bench, first, later) == [False, True]


def test_an_undo_counts_as_begun(bench: EngineBench) -> None:
    (lost,) = queued(
        bench, age=30, undoing=True, task="deallocate_network", state="undoing", position=0
    )
    claimed(bench, age=200)
    assert reconciler(bench, {QUEUE: 1000}).one_pass() == 1
    assert redriven(bench, lost) == [True]


def test_where_priorities_are_hints_the_order_decides(bench: EngineBench) -> None:
    """On RabbitMQ a later step may wait behind a first one."""
    (later,) = queued(bench, age=30, **later_step())
    claimed(bench, age=200)
    with reading(bench.engine) as connection:
        strict = recovery.claimed(connection, strict_priorities=True)[QUEUE]
        loose = recovery.claimed(connection, strict_priorities=False)[QUEUE]
        known = bench.runtime.sagas.versions
        assert [
            one.id for one in recovery.lost(connection, QUEUE, strict.lost, 9, known=known)
        ] == [later]
        assert recovery.lost(connection, QUEUE, loose.lost, 9, known=known) == []


def test_the_claims_of_another_queue_say_nothing(bench: EngineBench) -> None:
    (waits,) = queued(bench)
    claimed(bench, age=1, queue=DEAD)
    assert reconciler(bench, {QUEUE: 1000}).one_pass() == 0
    assert redriven(bench, waits) == [False]
    assert row(bench, waits).left > 0, "it is looked at again later"


def test_what_was_claimed_during_a_former_pass_counts(bench: EngineBench) -> None:
    """Short steps are rarely in hand when a pass looks."""
    one = reconciler(bench, {QUEUE: 1000})
    in_hand = claimed(bench, age=10)
    one.one_pass()
    finish(bench, in_hand)
    (lost,) = queued(bench, age=30)
    assert one.one_pass() == 1
    assert redriven(bench, lost) == [True]


def test_an_empty_queue_has_lost_everything(bench: EngineBench) -> None:
    ids = queued(bench, 5)
    assert reconciler(bench, {QUEUE: 0}).one_pass() == 5
    assert all(redriven(bench, *ids))


@pytest.mark.parametrize("dead", [300, 1000])
def test_a_group_that_is_down_starves_nobody(bench: EngineBench, dead: int) -> None:
    """Its messages are in their queue; those of another, healthy group were lost."""
    stuck = queued(bench, dead, queue=DEAD, age=5000)
    lost = queued(bench, 20, age=30)
    assert reconciler(bench, {QUEUE: 0, DEAD: dead}).one_pass() == 20
    assert all(redriven(bench, *lost))
    assert not any(redriven(bench, *stuck))
    with reading(bench.engine) as connection:
        left = connection.execute(select(o.id).where(o.due_at < db_now())).all()
    assert left == [], "every deadline has moved"


def test_expired_leases_of_one_group_starve_nobody(bench: EngineBench) -> None:
    gone = queued(bench, BATCH + 50, queue=DEAD, phase=Phase.LEASED.value)
    waits = queued(bench, 5, phase=Phase.WAITING.value)
    lost = queued(bench, 5, **later_step())
    reconciler(bench, {QUEUE: 0}).one_pass()
    assert all(redriven(bench, *waits, *lost))
    published = Counter(one.queue for one in bench.dispatches)
    assert published[DEAD] + published[QUEUE] <= BATCH
    assert 0 < sum(redriven(bench, *gone)) < len(gone)


def test_a_backend_that_changed_its_queue_starves_nobody(bench: EngineBench) -> None:
    former = "steps.former.0"
    moved = queued(bench, BATCH + 50, queue=former)
    lost = queued(bench, 5)
    reconciler(bench, {QUEUE: 0, former: len(moved)}).one_pass()
    assert all(redriven(bench, *lost))
    assert 0 < len(bench.dispatches) <= BATCH
    assert 0 < sum(redriven(bench, *moved)) < len(moved)


def test_polls_are_no_redrives(bench: EngineBench) -> None:
    (one,) = queued(bench)
    for _ in range(12):
        with transaction(bench.engine) as connection:
            connection.execute(
                update(operations)
                .where(o.id == one)
                .values(phase=Phase.WAITING.value, due_at=db_now() - 1)
            )
        assert reconciler(bench, {QUEUE: 1}).one_pass() == 1
    assert row(bench, one).redrives == 0
    with transaction(bench.engine) as connection:
        connection.execute(update(operations).where(o.id == one).values(due_at=db_now() - 1))
    assert reconciler(bench, {QUEUE: 0}).one_pass() == 1
    assert row(bench, one).redrives == 1


def test_the_redrives_of_a_step_end_with_it(bench: EngineBench) -> None:
    one = bench.create()
    with transaction(bench.engine) as connection:
        connection.execute(update(operations).where(o.id == one).values(redrives=3))
    bench.drive(1)
    assert row(bench, one).redrives == 0


def test_lost_links_are_found_under_a_queue_that_is_never_empty(bench: EngineBench) -> None:
    """Each worker dies after a commit, before the next message is published.

    Passes go by while newer creates keep the queue full: all that were cut off go on.
    """
    one = reconciler(bench, {QUEUE: 50})
    bench.create()
    bench.drive()  # the share server that the others join
    cut = []
    for _ in range(20):
        operation_id = bench.create()
        dispatch = bench.dispatches.pop()
        assert bench.deliver(bench.runtime.sagas.actions["allocate_network"], dispatch)
        cut.append(operation_id)  # the worker died here
    with transaction(bench.engine) as connection:
        connection.execute(
            update(operations)
            .where(o.id.in_(cut), o.phase == Phase.QUEUED.value)
            .values(due_at=db_now() - 1)
        )
    waits = [bench.create() for _ in range(50)]
    bench.dispatches.clear()
    with transaction(bench.engine) as connection:
        assert journal.claim(connection, waits[0], 1, "allocate_network", worker="w", lease=LEASE)
    assert one.one_pass() == 20
    bench.drive()
    for operation_id in cut:
        assert bench.operation(operation_id).state == "succeeded"
    assert not any(redriven(bench, *waits))
