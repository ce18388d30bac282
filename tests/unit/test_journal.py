"""The journal on both databases: claims, fences, waits, undo, re-drives, and what is queued."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, update
from sqlalchemy.exc import IntegrityError

from tests.support.pace import limit
from tests.support.tables import LEASE, accept, claim, claimed, recovery, row, tables
from worker.db.core.engine import db_now, engine_for, transaction
from worker.db.operations import recovery as late
from worker.db.operations import store as operations
from worker.db.tables.main import operations as operations_table
from worker.engine.heartbeat import Heartbeat
from worker.errors import Fatal, LeaseLost
from worker.model import OperationState, Phase

ERROR = {"code": "internal", "message": "No.", "object": "", "field": ""}


@pytest.fixture
def engine(database_url: str) -> Any:
    made = tables(database_url)
    yield made
    made.dispose()


def write(engine: Engine, function: Any, *args: Any, **named: Any) -> Any:
    with transaction(engine) as connection:
        return function(connection, *args, **named)


KNOWN = [("create_share", 1)]


def test_a_message_is_claimed_once(engine: Engine) -> None:
    one, dispatch = accept(engine)
    assert dispatch is not None
    assert (dispatch.operation_id, dispatch.dispatch, dispatch.position, dispatch.undoing) == (
        one,
        1,
        0,
        False,
    )
    with ThreadPoolExecutor(8) as threads:
        claims = list(threads.map(lambda _: claim(engine, one), range(8)))
    (mine,) = [found for found in claims if found is not None]
    assert (mine.fence, mine.attempts, mine.phase) == (1, 1, Phase.LEASED)
    assert 0 < row(engine, one).left <= LEASE


@pytest.mark.parametrize(("number", "action"), [(0, "allocate_network"), (2, "allocate_network")])
def test_a_stale_dispatch_claims_nothing(engine: Engine, number: int, action: str) -> None:
    one, _ = accept(engine)
    assert claim(engine, one, number, action) is None


def test_another_act_claims_nothing(engine: Engine) -> None:
    one, _ = accept(engine)
    assert claim(engine, one, 1, "create_share") is None
    assert claim(engine, "nowhere") is None


def test_an_id_and_a_key_are_accepted_once(engine: Engine) -> None:
    one, _ = accept(engine, idempotency_key="k")
    assert accept(engine, id=one)[1] is None
    assert accept(engine, idempotency_key="k")[1] is None
    assert accept(engine, idempotency_key="k", project_id="p2")[1] is not None


def test_an_object_has_one_live_operation(engine: Engine) -> None:
    accept(engine, resource_id="s1")
    assert accept(engine, resource_id="s1")[1] is None
    assert accept(engine, resource_id="s1", resource_kind="snapshot")[1] is not None
    behind, _ = accept(engine, resource_id="s1", running=False)
    with pytest.raises(IntegrityError), transaction(engine) as connection:
        connection.execute(
            update(operations_table).where(operations_table.c.id == behind).values(state="running")
        )


def test_renewing_needs_the_lease(engine: Engine) -> None:
    one, _ = accept(engine)
    mine = claimed(engine, one)
    with transaction(engine) as connection:
        recovery(connection, one)
    assert write(engine, operations.renew, one, mine.fence, LEASE)
    assert row(engine, one).left > LEASE / 2
    assert not write(engine, operations.renew, one, mine.fence + 1, LEASE)
    write(engine, operations.retry, mine, seconds=5.0)
    assert not write(engine, operations.renew, one, mine.fence, LEASE)


def lose(engine: Engine, operation_id: str) -> None:
    """Another worker takes the step up after the lease ran out."""
    with transaction(engine) as connection:
        recovery(connection, operation_id)
        found = late.due(connection, (Phase.LEASED,), 10, known=KNOWN)
        (dispatch,) = late.redrive(connection, found, republish_after=LEASE)
    assert claim(engine, operation_id, dispatch.dispatch) is not None


def test_who_lost_the_lease_writes_nothing(engine: Engine) -> None:
    one, _ = accept(engine)
    mine = claimed(engine, one)
    lose(engine, one)
    before = row(engine, one)
    for function, named in (
        (operations.advance, {"task": "get_share_server", "position": 1, "republish_after": LEASE}),
        (operations.wait, {"seconds": 1.0, "waits_for": None}),
        (operations.retry, {"seconds": 1.0}),
        (
            operations.start_compensation,
            {"task": "deallocate_network", "error": ERROR, "republish_after": LEASE},
        ),
        (operations.give_up, {"error": ERROR, "pause": 1.0, "store_again": 1.0}),
        (operations.hold, {}),
    ):
        with pytest.raises(LeaseLost):
            write(engine, function, mine, **named)
    with pytest.raises(LeaseLost):
        write(
            *(engine, operations.end, mine, OperationState.SUCCEEDED),
            result={},
            error=None,
            store_again=1.0,
        )
    after = row(engine, one)
    assert (after.state, after.fence, after.dispatch, after.task) == (
        before.state,
        before.fence,
        before.dispatch,
        before.task,
    )
    assert after.fence == mine.fence + 1


def test_a_finished_step_makes_the_next_one_due(engine: Engine) -> None:
    one, _ = accept(engine)
    mine = claimed(engine, one)
    write(
        engine, operations.advance, mine, task="get_share_server", position=1, republish_after=LEASE
    )
    found = row(engine, one)
    assert (found.phase, found.attempts, found.position, found.dispatch) == ("queued", 0, 1, 1)
    assert claim(engine, one) is None, "the step that is done is not done again"
    assert claim(engine, one, 1, "get_share_server") is not None


def test_waiting_is_no_attempt_and_its_beginning_is_kept(engine: Engine) -> None:
    one, _ = accept(engine)
    write(engine, operations.wait, claimed(engine, one), seconds=50.0, waits_for="key")
    first = row(engine, one)
    assert (first.phase, first.attempts, first.waits_for) == ("waiting", 0, "key")
    assert 40 < first.left <= 50
    (dispatch,) = write(engine, operations.wake, "key", republish_after=LEASE)
    write(
        engine,
        operations.wait,
        claimed(engine, one, dispatch.dispatch),
        seconds=1.0,
        waits_for=None,
    )
    second = row(engine, one)
    assert second.waiting_since == first.waiting_since
    assert (second.attempts, second.waits_for) == (0, None)


def test_a_failed_attempt_counts(engine: Engine) -> None:
    one, _ = accept(engine)
    write(engine, operations.retry, claimed(engine, one), seconds=5.0)
    assert row(engine, one).attempts == 1
    lose_at = row(engine, one)
    assert lose_at.phase == "waiting"
    with transaction(engine) as connection:
        recovery(connection, one)
        (dispatch,) = late.redrive(
            connection,
            late.due(connection, (Phase.WAITING,), 10, known=KNOWN),
            republish_after=LEASE,
        )
    assert claimed(engine, one, dispatch.dispatch).attempts == 2


def waiting(engine: Engine, number: int, key: str = "key") -> list[str]:
    ids = [accept(engine)[0] for _ in range(number)]
    for one in ids:
        write(engine, operations.wait, claimed(engine, one), seconds=50.0, waits_for=key)
    return ids


def test_waking_is_in_order_limited_and_by_key(engine: Engine) -> None:
    ids = waiting(engine, 4)
    waiting(engine, 1, key="another")
    (first,) = write(engine, operations.wake, "key", republish_after=LEASE, limit=1)
    assert (first.operation_id, first.dispatch) == (ids[0], 2)
    rest = write(engine, operations.wake, "key", republish_after=LEASE)
    assert {dispatch.operation_id for dispatch in rest} == set(ids[1:])
    assert write(engine, operations.wake, "key", republish_after=LEASE) == []


def test_a_verdict_goes_with_the_waking(engine: Engine) -> None:
    ids = waiting(engine, 2)
    dispatches = write(engine, operations.wake, "key", republish_after=LEASE, cancel_reason=ERROR)
    assert len(dispatches) == 2
    for one in ids:
        assert claimed(engine, one, 2).cancel_reason == ERROR


def test_undo_begins_a_chain_of_its_own(engine: Engine) -> None:
    one, _ = accept(engine)
    mine = claimed(engine, one)
    dispatch = write(
        engine,
        operations.start_compensation,
        mine,
        task="deallocate_network",
        error=ERROR,
        republish_after=LEASE,
    )
    assert (dispatch.dispatch, dispatch.undoing) == (2, True)
    found = row(engine, one)
    assert (found.state, found.undoing, found.attempts, found.error) == ("undoing", True, 0, ERROR)
    assert claim(engine, one, 1, "deallocate_network") is None
    assert claim(engine, one, 2, "deallocate_network") is not None


def test_a_redrive_is_numbered_and_happens_once(engine: Engine) -> None:
    one, _ = accept(engine)
    with transaction(engine) as connection:
        assert late.due(connection, (Phase.QUEUED,), 10, known=KNOWN) == []
        recovery(connection, one)
    with transaction(engine) as connection:
        found = late.due(connection, (Phase.QUEUED,), 10, known=KNOWN)
        assert late.due(connection, (Phase.LEASED, Phase.WAITING), 10, known=KNOWN) == []
    assert [operation.id for operation in found] == [one]
    (dispatch,) = write(engine, late.redrive, found, republish_after=LEASE)
    assert dispatch.dispatch == 2
    assert write(engine, late.redrive, found, republish_after=LEASE) == []
    assert claim(engine, one, 1) is None, "the lost message turns up after all"
    assert claimed(engine, one, 2).redrives == 1


def test_what_is_longest_overdue_comes_first(engine: Engine) -> None:
    ids = [accept(engine)[0] for _ in range(3)]
    with transaction(engine) as connection:
        for by, one in zip((5.0, 50.0, 20.0), ids, strict=True):
            recovery(connection, one, by)
        found = late.due(connection, (Phase.QUEUED,), 2, known=KNOWN)
    assert [operation.id for operation in found] == [ids[1], ids[2]]


def end(engine: Engine, operation_id: str, number: int = 1) -> None:
    mine = claimed(engine, operation_id, number)
    write(
        *(engine, operations.end, mine, OperationState.SUCCEEDED),
        result={"id": "s"},
        error=None,
        store_again=LEASE,
    )


def test_what_is_queued_is_promoted_in_the_order_of_acceptance(engine: Engine) -> None:
    first, _ = accept(engine, resource_id="s1")
    ids = [accept(engine, resource_id="s1", running=False)[0] for _ in range(3)]
    assert write(engine, operations.pending, "share", "s1") == 3
    assert write(engine, operations.is_busy, "share", "s1")
    end(engine, first)
    assert not write(engine, operations.is_busy, "share", "s1")
    for one in ids:
        assert claim(engine, one) is None, "not its turn"
        (dispatch,) = write(engine, operations.promote, "share", "s1", republish_after=LEASE)
        assert (dispatch.operation_id, dispatch.dispatch) == (one, 1)
        end(engine, one)
    assert write(engine, operations.promote, "share", "s1", republish_after=LEASE) == []


def test_an_end_leaves_a_result_to_be_stored(engine: Engine) -> None:
    one, _ = accept(engine)
    end(engine, one)
    found = row(engine, one)
    assert (found.state, found.phase, found.due_at, found.result) == (
        "succeeded",
        None,
        None,
        {"id": "s"},
    )
    assert found.result_due_at is not None
    assert claim(engine, one) is None


def test_the_note_of_an_older_result_does_not_hide_a_newer_one(engine: Engine) -> None:
    older, newer = (accept(engine)[0] for _ in range(2))
    for one in (older, newer):
        end(engine, one)
    with transaction(engine) as connection:
        # As giving up does: what the result backend holds is not the last word any more.
        connection.execute(
            update(operations_table)
            .where(operations_table.c.id == newer)
            .values(result_due_at=db_now())
        )
    heartbeat = Heartbeat(engine, LEASE)
    for one in (older, newer):
        heartbeat.stored(one)
    heartbeat.stop()
    assert row(engine, older).result_due_at is None
    assert row(engine, newer).result_due_at is not None


def test_what_is_given_up_lets_its_object_go_and_stays_due(engine: Engine) -> None:
    one, _ = accept(engine, resource_id="s1")
    mine = claimed(engine, one)
    write(engine, operations.give_up, mine, error=ERROR, pause=60.0, store_again=LEASE)
    found = row(engine, one)
    assert (found.state, found.phase) == ("compensation_failed", "waiting")
    assert 50 < found.left <= 60
    assert not write(engine, operations.is_busy, "share", "s1")


def test_a_delete_supersedes_only_what_is_queued(engine: Engine) -> None:
    live, _ = accept(engine, resource_id="s1")
    ids = [accept(engine, resource_id="s1", running=False)[0] for _ in range(2)]
    other, _ = accept(engine, resource_id="s2", running=False)
    ended = write(engine, operations.supersede, "share", "s1", ERROR, store_again=LEASE)
    assert set(ended) == set(ids)
    states = [row(engine, one).state for one in (live, *ids, other)]
    assert states == ["running", "superseded", "superseded", "pending"]
    assert row(engine, ids[0]).error == ERROR
    assert row(engine, ids[0]).result_due_at is not None


def test_a_cancel_meets_the_operation_where_it_is(engine: Engine) -> None:
    queued, _ = accept(engine)
    leased, _ = accept(engine)
    mine = claimed(engine, leased)
    (parked,) = waiting(engine, 1)
    assert write(engine, operations.request_cancel, queued, ERROR, republish_after=LEASE) == []
    assert write(engine, operations.request_cancel, leased, ERROR, republish_after=LEASE) == []
    (dispatch,) = write(engine, operations.request_cancel, parked, ERROR, republish_after=LEASE)
    assert (dispatch.operation_id, dispatch.dispatch) == (parked, 2)
    assert claimed(engine, queued).cancel_reason == ERROR
    with pytest.raises(Fatal, match=r"No\."):
        write(
            engine,
            operations.advance,
            mine,
            task="get_share_server",
            position=1,
            republish_after=LEASE,
        )
    with pytest.raises(Fatal, match=r"No\."):
        write(
            *(engine, operations.end, mine, OperationState.SUCCEEDED),
            result={},
            error=None,
            store_again=1.0,
        )
    assert row(engine, leased).phase == "leased", "it is still this worker's to undo"
    assert claimed(engine, parked, 2).cancel_reason == ERROR
    behind, _ = accept(engine, running=False)
    write(engine, operations.request_cancel, behind, ERROR, republish_after=LEASE)
    assert row(engine, behind).cancel_reason == ERROR


def test_what_was_condemned_while_its_step_ran_does_not_wait(engine: Engine) -> None:
    for function, named in (
        (operations.wait, {"seconds": 1000.0, "waits_for": "key"}),
        (operations.retry, {"seconds": 1000.0}),
    ):
        one, _ = accept(engine)
        mine = claimed(engine, one)
        write(engine, operations.request_cancel, one, ERROR, republish_after=LEASE)
        write(engine, function, mine, **named)
        assert row(engine, one).left <= 0


def test_what_is_being_undone_is_not_condemned(engine: Engine) -> None:
    one, _ = accept(engine)
    mine = claimed(engine, one)
    write(
        engine,
        operations.start_compensation,
        mine,
        task="deallocate_network",
        error=ERROR,
        republish_after=LEASE,
    )
    assert write(engine, operations.request_cancel, one, ERROR, republish_after=LEASE) == []
    assert row(engine, one).cancel_reason is None


def test_nothing_is_queued_behind_an_operation_that_ends_meanwhile(engine: Engine) -> None:
    """Whoever is told "busy" is promoted by the very end of what it was busy with."""
    live, _ = accept(engine, resource_id="s1")
    mine = claimed(engine, live)
    told, go = threading.Event(), threading.Event()
    promoted: list[Any] = []

    def intake() -> None:
        with transaction(engine_for(str(engine.url.render_as_string(False)))) as connection:
            busy = operations.is_busy(connection, "share", "s1")
            told.set()
            go.wait(1.0)  # the worker ends the live one now, if nothing holds it up
            values = {
                "id": "behind",
                "project_id": "p1",
                "verb": "v",
                "resource_kind": "share",
                "resource_id": "s1",
                "payload": {},
                "payload_digest": "",
                "saga": "s",
                "saga_version": 1,
                "task": "t",
            }
            operations.accept(connection, values, running=not busy, republish_after=LEASE)

    thread = threading.Thread(target=intake)
    thread.start()
    assert told.wait(limit())
    with transaction(engine) as connection:
        operations.end(
            connection, mine, OperationState.SUCCEEDED, result={}, error=None, store_again=LEASE
        )
        promoted = operations.promote(connection, "share", "s1", republish_after=LEASE)
    go.set()
    thread.join(limit())
    assert [dispatch.operation_id for dispatch in promoted] == ["behind"] or row(
        engine, "behind"
    ).state == "running"
