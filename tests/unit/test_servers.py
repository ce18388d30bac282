"""Sharing a server on both databases: one builder, limits that hold, and no way back."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, func, insert, select, update

from tests.support.tables import tables
from worker.db.core.engine import db_now, transaction
from worker.db.share_servers import health
from worker.db.share_servers import store as servers
from worker.db.share_servers.limits import Limits
from worker.db.share_servers.store import Joined, ServerKey
from worker.db.tables.main import backends, share_server_refs, share_servers
from worker.errors import ErrorCode, Fatal
from worker.model import NetworkInfo, ServerStatus, ShareServerDetails

KEY = ServerKey("p1", "n1", "b1")
INFO = NetworkInfo("10.0.0.0/24", "255.255.255.0", 24, 4, None, None, ("10.0.0.2",))
ERROR = {"code": "share_server_failed", "message": "It burnt.", "object": "x", "field": ""}


@pytest.fixture
def engine(database_url: str) -> Any:
    made = tables(database_url)
    yield made
    made.dispose()


def write(engine: Engine, function: Any, *args: Any, **named: Any) -> Any:
    with transaction(engine) as connection:
        return function(connection, *args, **named)


def join(
    engine: Engine,
    share: str = "",
    *,
    operation: str = "",
    limits: Limits = Limits(),  # noqa: B008 - frozen
    gib: int = 1,
    key: ServerKey = KEY,
    accepted_at: float | None = None,
    preferred: str = "",
) -> Joined | None:
    share = share or str(uuid.uuid4())
    with transaction(engine) as connection:
        now = connection.execute(select(db_now())).scalar_one()
        return servers.join(
            connection,
            key,
            share_id=share,
            gib=gib,
            operation_id=operation or f"op-{share}"[:64],
            accepted_at=now if accepted_at is None else accepted_at,
            limits=limits,
            tolerated_failures=3,
            preferred=preferred,
        )


def joined(engine: Engine, share: str = "", **named: Any) -> Joined:
    found = join(engine, share, **named)
    assert found is not None
    return found


def build(engine: Engine, server_id: str) -> None:
    write(engine, servers.allocated, server_id, INFO)
    write(engine, servers.built, server_id, ShareServerDetails(f"vm-{server_id}", ("10.0.0.2",)))


def rows(engine: Engine) -> list[Any]:
    with transaction(engine) as connection:
        return list(connection.execute(select(share_servers)))


def references(engine: Engine, server_id: str) -> tuple[int, int]:
    r = share_server_refs.c
    with transaction(engine) as connection:
        counted = connection.execute(
            select(func.count(), func.coalesce(func.sum(r.gib), 0)).where(
                r.share_server_id == server_id
            )
        ).one()
    return int(counted[0]), int(counted[1])


def test_many_at_once_make_one_building_server(engine: Engine) -> None:
    with ThreadPoolExecutor(5) as threads:
        found = list(threads.map(lambda _: joined(engine), range(30)))
    (server,) = rows(engine)
    assert {one.server.id for one in found} == {server.id}
    assert [one.is_builder for one in found].count(True) == 1
    assert (server.shares, server.gib) == references(engine, server.id) == (30, 30)


def test_other_keys_have_servers_of_their_own(engine: Engine) -> None:
    keys = [
        KEY,
        ServerKey("p2", "n1", "b1"),
        ServerKey("p1", "n2", "b1"),
        ServerKey("p1", "n1", "b2"),
        ServerKey("p1", "n1", "b1", "ldap"),
    ]
    found = [joined(engine, key=key) for key in keys]
    assert len({one.server.id for one in found}) == len(keys)
    assert all(one.is_builder for one in found)
    assert len({key.digest for key in keys}) == len(keys)


def test_a_repeated_join_finds_its_reference(engine: Engine) -> None:
    first = joined(engine, "s1")
    again = joined(engine, "s1")
    assert again == first
    assert references(engine, first.server.id) == (1, 1)


@pytest.mark.parametrize("limits", [Limits(shares=4), Limits(gib=4)], ids=str)
def test_limits_are_never_overrun(engine: Engine, limits: Limits) -> None:
    def once(number: int) -> Joined | None:
        return join(engine, f"s{number}", limits=limits)

    waiting = list(range(18))
    for _ in range(10):
        with ThreadPoolExecutor(5) as threads:
            found = list(threads.map(once, waiting))
        building = [row for row in rows(engine) if row.status == "new"]
        assert len(building) <= 1
        for server in rows(engine):
            assert server.shares <= 4
            assert (server.shares, server.gib) == references(engine, server.id)
        for server in building:
            build(engine, server.id)
        waiting = [n for n, one in zip(waiting, found, strict=True) if one is None]
        if not waiting:
            break
    assert not waiting
    assert len(rows(engine)) == 5


def test_a_share_larger_than_the_limit_has_a_server_to_itself(engine: Engine) -> None:
    large = joined(engine, gib=10, limits=Limits(gib=4))
    assert large.is_builder
    assert join(engine, gib=1, limits=Limits(gib=4)) is None, "full, and another is being built"
    build(engine, large.server.id)
    small = joined(engine, gib=1, limits=Limits(gib=4))
    assert small.server.id != large.server.id


def test_the_last_reference_makes_it_deleting(engine: Engine) -> None:
    one, two = joined(engine, "s1"), joined(engine, "s2")
    build(engine, one.server.id)
    first = write(engine, servers.release, "s1", deleter_id="d1")
    assert (first.status, first.deleter_id, first.shares) == ("active", None, 1)
    last = write(engine, servers.release, "s2", deleter_id="d2")
    assert (last.status, last.deleter_id, last.shares, last.gib) == ("deleting", "d2", 0, 0)
    assert write(engine, servers.release, "s2", deleter_id="d3") is None
    assert write(engine, servers.deleted_by, "d2").id == two.server.id
    other = joined(engine, "s3")
    assert other.server.id != one.server.id, "what is being deleted cannot be joined"
    assert other.is_builder


def test_releases_at_once_have_one_deleter(engine: Engine) -> None:
    server = joined(engine, "s0").server.id
    build(engine, server)
    for number in range(1, 10):
        joined(engine, f"s{number}")
    with ThreadPoolExecutor(5) as threads:
        released = list(
            threads.map(
                lambda n: write(engine, servers.release, f"s{n}", deleter_id=f"d{n}"), range(10)
            )
        )
    assert [row.status for row in released].count("deleting") == 1
    assert len({row.deleter_id for row in released} - {None}) == 1


def test_an_idle_server_waits_and_may_be_joined_until_it_is_doomed(engine: Engine) -> None:
    server = joined(engine, "s1").server.id
    build(engine, server)
    idle = write(engine, servers.release, "s1", deleter_id=None, idle_after=True)
    assert (idle.status, idle.idle_since is not None) == ("active", True)
    assert write(engine, servers.idle, 3600.0, 10, backends=["b1"]) == []
    with transaction(engine) as connection:
        connection.execute(update(share_servers).values(idle_since=db_now() - 7200))
    assert write(engine, servers.idle, 3600.0, 10, backends=["b1"]) == [server]
    assert joined(engine, "s2").server.id == server
    assert write(engine, servers.idle, 3600.0, 10, backends=["b1"]) == []
    assert write(engine, servers.mark_deleting, server, "d1") is None, (
        "somebody joined at the last moment"
    )
    write(engine, servers.release, "s2", deleter_id=None, idle_after=True)
    assert write(engine, servers.mark_deleting, server, "d2").status == "deleting"
    assert write(engine, servers.mark_deleting, server, "d3") is None
    assert joined(engine, "s3").server.id != server


def test_a_builder_that_gives_up_takes_the_references_with_it(engine: Engine) -> None:
    builder = joined(engine, "s1", operation="o1")
    joined(engine, "s2", operation="o2")
    write(engine, servers.remember, "o1", "vm-7")
    gone = write(engine, servers.fail_build, "o1")
    assert (gone.status, gone.deleter_id, gone.shares, gone.gib) == ("deleting", "o1", 0, 0)
    assert gone.server_id == "vm-7"
    assert references(engine, builder.server.id) == (0, 0)
    assert write(engine, servers.fail_build, "o1") is None
    assert write(engine, servers.fail_build, "o2") is None, "it built nothing"
    anew = joined(engine, "s2", operation="o2")
    assert anew.is_builder
    assert anew.server.id != builder.server.id


def test_a_server_that_serves_is_not_abandoned(engine: Engine) -> None:
    server = joined(engine, "s1", operation="o1").server.id
    build(engine, server)
    assert write(engine, servers.fail_build, "o1") is None
    (row,) = rows(engine)
    assert (row.status, row.shares) == ("active", 1)


def test_a_deleted_server_is_never_built(engine: Engine) -> None:
    server = joined(engine, "s1", operation="o1").server.id
    write(engine, servers.fail_build, "o1")
    write(engine, servers.allocated, server, INFO)
    assert rows(engine)[0].status == ServerStatus.DELETING


def test_a_late_builder_does_not_revive_a_deleted_server(engine: Engine) -> None:
    server = joined(engine, "s1", operation="o1").server.id
    write(engine, servers.fail_build, "o1")
    with pytest.raises(Fatal, match="not being built any more"):
        write(engine, servers.built, server, ShareServerDetails("vm", ("10.0.0.2",)))
    assert rows(engine)[0].status == ServerStatus.DELETING


def test_after_too_many_failures_who_waited_fails_with_the_last_reason(engine: Engine) -> None:
    for number in range(1, 4):
        assert write(engine, servers.count_failure, KEY, ERROR) == number
    with pytest.raises(Fatal, match=r"It burnt\.") as caught:
        join(engine, "old", accepted_at=0.0)
    assert caught.value.code is ErrorCode.SHARE_SERVER_FAILED
    assert not rows(engine)
    assert joined(engine, key=ServerKey("p2", "n1", "b1"), accepted_at=0.0).is_builder


def test_who_asks_after_the_failures_begins_a_new_run(engine: Engine) -> None:
    for _ in range(3):
        write(engine, servers.count_failure, KEY, ERROR)
    assert joined(engine, "new").is_builder
    assert write(engine, servers.count_failure, KEY, ERROR) == 1


def test_fewer_failures_are_tolerated_and_a_success_forgets_them(engine: Engine) -> None:
    for _ in range(2):
        write(engine, servers.count_failure, KEY, ERROR)
    found = joined(engine, "s1", accepted_at=0.0)
    build(engine, found.server.id)
    assert write(engine, servers.count_failure, KEY, ERROR) == 1


def test_what_was_written_is_read_back(engine: Engine) -> None:
    server = joined(engine, "s1").server.id
    build(engine, server)
    found = write(engine, servers.get, server)
    assert found.network_info == INFO
    assert found.details == ShareServerDetails(f"vm-{server}", ("10.0.0.2",))
    assert (found.status, found.server_id) == (ServerStatus.ACTIVE, f"vm-{server}")
    write(engine, servers.remove, server)
    assert write(engine, servers.get, server) is None


def test_a_failed_build_is_kept_for_a_while_and_is_nobodys(engine: Engine) -> None:
    server = joined(engine, "s1", operation="o1").server.id
    write(engine, servers.allocated, server, INFO)
    write(engine, servers.fail_build, "o1")
    write(engine, servers.mark_build_failed, server, ERROR)
    (row,) = rows(engine)
    assert (row.status, row.error, row.network_info, row.shares) == ("error", ERROR, None, 0)
    assert write(engine, servers.deleted_by, "o1") is None
    assert joined(engine, "s2").server.id != server
    assert write(engine, servers.forget_failed, 3600.0, 10) == 0
    with transaction(engine) as connection:
        connection.execute(update(share_servers).values(updated_at=db_now() - 7200))
    assert write(engine, servers.forget_failed, 3600.0, 1) == 1
    (left,) = rows(engine)
    assert left.status == "new"


@pytest.mark.parametrize("status", [ServerStatus.ERROR, ServerStatus.ERROR_DELETING])
def test_a_failed_deletion_is_taken_over(engine: Engine, status: ServerStatus) -> None:
    server = joined(engine, "s1", operation="o1").server.id
    write(engine, servers.fail_build, "o1")
    write(engine, servers.mark, server, status, ERROR)
    assert write(engine, servers.mark_deleting, server, "d1") is None, (
        "only who is asked to may do that"
    )
    assert write(engine, servers.mark_deleting, server, "d1", among=(status,)).status == "deleting"
    assert write(engine, servers.mark_deleting, server, "d2", among=(status,)) is None
    assert write(engine, servers.deleted_by, "o1") is None
    assert write(engine, servers.deleted_by, "d1").id == server


def test_only_an_active_server_is_looked_after(engine: Engine) -> None:
    server = joined(engine, "s1").server.id
    details = ShareServerDetails("vm-new", ("10.0.0.2",))
    assert write(engine, health.active, "b1") == []
    build(engine, server)
    assert [one.id for one in write(engine, health.active, "b1")] == [server]
    assert write(engine, health.hold_active, server).id == server
    write(engine, health.not_ensured, server, ERROR)
    assert rows(engine)[0].error == ERROR
    write(engine, health.ensured, server, details)
    assert (rows(engine)[0].error, rows(engine)[0].server_id) == (None, "vm-new")
    write(engine, servers.release, "s1", deleter_id="d1")
    assert write(engine, health.hold_active, server) is None
    write(engine, health.not_ensured, server, ERROR)
    write(engine, health.ensured, server, ShareServerDetails("late", ("10.0.0.2",)))
    assert (rows(engine)[0].status, rows(engine)[0].error) == ("deleting", None)
    assert rows(engine)[0].server_id == "vm-new"


def test_a_look_is_asked_for_once_and_placement_sees_no_change(engine: Engine) -> None:
    with transaction(engine) as connection:
        for name, due in (("due", db_now() - 1), ("later", db_now() + 3600), ("never", None)):
            connection.execute(
                insert(backends).values(name=name, report={}, check_at=due, changed_at=7.0)
            )
    assert write(engine, health.ask, again_after=60.0, limit=10) == ["due"]
    assert write(engine, health.ask, again_after=60.0, limit=10) == []
    write(engine, health.looked_at, "due", again_after=-1.0)
    write(engine, health.looked_at, "never", again_after=-1.0)
    assert write(engine, health.ask, again_after=60.0, limit=10) == ["due"]
    with transaction(engine) as connection:
        assert set(connection.execute(select(backends.c.changed_at)).scalars()) == {7.0}


def test_a_share_that_grows_is_counted_on_its_server(engine: Engine) -> None:
    limits = Limits(gib=10)
    first = joined(engine, "grows", gib=4, limits=limits).server.id
    build(engine, first)
    assert joined(engine, "stays", gib=4, limits=limits).server.id == first
    assert write(engine, servers.resize, "grows", 6, limits)
    assert not write(engine, servers.resize, "grows", 7, limits)
    (server,) = rows(engine)
    assert (server.shares, server.gib) == references(engine, first) == (2, 10)
    # There is no room for another one; and what an extend did not get is given back.
    assert joined(engine, "next", gib=1, limits=limits).server.id != first
    assert write(engine, servers.resize, "grows", 4)
    assert references(engine, first) == (2, 8)
    assert joined(engine, "after", gib=1, limits=limits).server.id == first


def test_a_share_alone_on_its_server_grows_beyond_the_limit(engine: Engine) -> None:
    server = joined(engine, "alone", gib=4, limits=Limits(gib=10)).server.id
    assert write(engine, servers.resize, "alone", 50, Limits(gib=10))
    assert references(engine, server) == (1, 50)
    assert write(engine, servers.resize, "on no server", 50, Limits(gib=10))


def test_the_preferred_server_is_joined_while_it_has_room(engine: Engine) -> None:
    limits = Limits(shares=2)
    oldest = joined(engine, "a", limits=limits).server.id
    build(engine, oldest)
    joined(engine, "b", limits=limits)
    newer = joined(engine, "c", limits=limits).server.id
    build(engine, newer)
    write(engine, servers.release, "b", deleter_id="x")
    assert joined(engine, "d", limits=limits, preferred=newer).server.id == newer
    assert joined(engine, "e", limits=limits, preferred=newer).server.id == oldest
