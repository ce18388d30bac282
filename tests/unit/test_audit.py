"""The audit's rules on the fakes: who is an orphan, and when it goes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from tests.support.audits import GRACE, AuditBench
from tests.support.deployment import FAKE_BACKEND
from worker.app import check_times
from worker.config import Config
from worker.db import audits
from worker.db.core.engine import db_now, reading, transaction
from worker.db.operations import recovery
from worker.db.tables.audits import audit_findings, tombstones
from worker.db.tables.main import backends, operations, share_servers, shares
from worker.engine.runner import run
from worker.errors import ConfigurationError
from worker.model import OwnerKind, Phase
from worker.systems.fake_world import World
from worker.tasks.audit import ask_for_audits
from worker.tasks.orphans import NAME
from worker.tasks.sagas import ACTIONS

PLANTED = 30


@pytest.fixture
def bench(tmp_path: Path, database_url: str) -> Iterator[AuditBench]:
    with AuditBench(tmp_path, database_url, "fake", FAKE_BACKEND) as made:
        yield made


def world_of(bench: AuditBench) -> World:
    return World(bench.config.state_dir / "backends" / "fake" / "world.db")


def everything(world: World) -> dict[str, set[str]]:
    return {
        "servers": {row["id"] for row in world.servers()},
        "ports": {row["server"] for row in world.ports()},
        "shares": {row["id"] for row in world.shares()},
        "snapshots": {row["id"] for row in world.snapshots()},
        "networks": {row["domain"] for row in world.networks()},
    }


class Group:
    """Thirty servers, each on a network of its own, with a share and its snapshot."""

    def __init__(self, bench: AuditBench, *, row: bool, number: int = PLANTED) -> None:
        self.networks = [bench.network() for _ in range(number)]
        self.servers = [bench.server(network, row=row) for network in self.networks]
        self.shares = [bench.share(server, "pool", row=row) for server in self.servers]
        self.snapshots = [
            bench.snapshot(share, server, row=row)
            for share, server in zip(self.shares, self.servers, strict=True)
        ]

    def state(self) -> dict[str, set[str]]:
        servers = {server.id for server in self.servers}
        return {
            "servers": servers,
            "ports": servers,
            "shares": {share.id for share in self.shares},
            "snapshots": {snapshot.id for snapshot in self.snapshots},
            "networks": {f"share_network:{network.id}" for network in self.networks},
        }


def both(one: dict[str, set[str]], other: dict[str, set[str]]) -> dict[str, set[str]]:
    return {kind: one[kind] | other[kind] for kind in one}


def test_orphans_of_every_kind_go_and_what_is_not_ours_stays(bench: AuditBench) -> None:
    world = world_of(bench)
    live, orphaned = Group(bench, row=True), Group(bench, row=True)
    foreign = Group(bench, row=False)
    bench.forget(*orphaned.snapshots, *orphaned.shares, *orphaned.servers)
    with transaction(bench.engine) as connection:
        for network in foreign.networks:  # another installation's database has these
            connection.execute(
                audits.share_networks.delete().where(audits.share_networks.c.id == network.id)
            )
    whole = both(both(live.state(), orphaned.state()), foreign.state())
    assert everything(world) == whole
    kept = both(live.state(), foreign.state())

    seen_once = bench.audit(repair=True)
    bench.age()
    with transaction(bench.engine) as connection:
        connection.execute(update(audit_findings).values(times=0))
    still_once = bench.audit(repair=True)
    for result in (seen_once, still_once):
        assert (result["removed"], result["not_listed"], result["cannot_tell"]) == (0, {}, [])
        # A server, its port, its share, the share's snapshot, and its network.
        assert result["orphan"] == 5 * PLANTED
        assert result["unknown"] == 5 * PLANTED
        assert result["missing"] == 0
    assert everything(world) == whole, "seen once"

    assert bench.audit(repair=False)["removed"] == 0
    assert everything(world) == whole, "nobody said repair"

    done = bench.audit(repair=True)
    assert (done["removed"], done["not_removed"], done["postponed"]) == (5 * PLANTED, 0, 0)
    assert done["orphan"] == 0
    assert everything(world) == kept
    again = bench.audit(repair=True)
    assert (again["removed"], again["orphan"]) == (0, 0)
    assert again["unknown"] == 5 * PLANTED
    assert everything(world) == kept


def orphan(bench: AuditBench) -> Any:
    server = bench.server(bench.network())
    bench.forget(server)
    return server


def test_what_is_younger_than_the_grace_time_stays(bench: AuditBench) -> None:
    orphan(bench)
    for _ in range(3):
        assert bench.audit(repair=True)["removed"] == 0
    bench.age(GRACE / 2)
    assert bench.audit(repair=True)["removed"] == 0
    bench.age(GRACE)
    assert bench.audit(repair=True)["removed"] == 3
    assert everything(world_of(bench))["servers"] == set()


def test_a_row_that_appears_in_between_saves_its_things(
    bench: AuditBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = orphan(bench)
    assert bench.audit()["orphan"] == 3
    bench.age()

    def appears(name: str) -> None:
        if name == f"{NAME}.after_note":
            with transaction(bench.engine) as connection:
                connection.execute(
                    share_servers.insert().values(
                        id=server.id,
                        project_id="p1",
                        share_network_id=server.share_network_id,
                        backend="fake",
                        status="active",
                        builder_id="-",
                        created_at=db_now(),
                        updated_at=db_now(),
                    )
                )

    monkeypatch.setattr("worker.tasks.audit.failpoint", appears)
    assert bench.audit(repair=True)["removed"] == 0
    assert everything(world_of(bench))["servers"] == {server.id}
    assert bench.findings() == []
    monkeypatch.undo()
    bench.age()
    assert bench.audit(repair=True)["orphan"] == 0


@pytest.mark.parametrize("where", ["before_remove", "after_remove"])
def test_a_worker_killed_in_a_repair_leaves_the_rest_to_the_next_audit(
    bench: AuditBench, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        orphan(bench)
    bench.audit()
    bench.age()
    dispatch = bench.begin(repair=True)
    passed: list[str] = []

    class Killed(BaseException):
        """As SIGKILL: nothing of the worker's own goes on."""

    def die(name: str) -> None:
        passed.append(name)
        if passed.count(f"{NAME}.{where}") == 2:
            raise Killed

    monkeypatch.setattr("worker.tasks.orphans.failpoint", die)
    with pytest.raises(Killed):
        run(bench.runtime, ACTIONS[NAME], dispatch.operation_id, dispatch.dispatch)
    monkeypatch.undo()
    assert len(everything(world_of(bench))["servers"]) > 0
    assert bench.begin(repair=True) is None, "one audit of a backend at a time"
    # Its lease runs out, and the reconciler takes it up again.
    with transaction(bench.engine) as connection:
        connection.execute(
            update(operations)
            .where(operations.c.id == dispatch.operation_id)
            .values(due_at=db_now() - 1)
        )
        late = recovery.due(connection, (Phase.LEASED,), 10, known=bench.runtime.sagas.versions)
        (again,) = recovery.redrive(connection, late, republish_after=30)
    run(bench.runtime, ACTIONS[NAME], again.operation_id, again.dispatch)
    assert everything(world_of(bench)) == {
        kind: set() for kind in ("servers", "ports", "shares", "snapshots", "networks")
    }
    assert bench.findings() == []


def test_a_server_that_cannot_be_removed_keeps_its_addresses(bench: AuditBench) -> None:
    server = orphan(bench)
    bench.audit()
    bench.age()
    world = world_of(bench)
    world.arm("remove_orphan", "fatal", match=f"fake-{server.id}", times=2)
    first = bench.audit(repair=True)
    assert (first["removed"], first["not_removed"], first["postponed"]) == (0, 2, 1)
    (found,) = [row for row in bench.findings() if row.kind == "server"]
    assert "remove_orphan" in found.error
    assert everything(world)["ports"] == {server.id}
    assert bench.audit(repair=True)["removed"] == 3


def test_a_part_that_cannot_be_listed_changes_nothing_that_is_known_of_it(
    bench: AuditBench,
) -> None:
    orphan(bench)
    stays = bench.server(bench.network())
    bench.audit()
    bench.age()
    world_of(bench).arm("owned_by_compute", "retryable")
    result = bench.audit(repair=True)
    assert list(result["not_listed"]) == ["compute"]
    assert (result["missing"], result["postponed"]) == (0, 2), "its addresses stay"
    assert len(everything(world_of(bench))["servers"]) == 2
    assert bench.audit(repair=True)["removed"] >= 2
    assert everything(world_of(bench))["servers"] == {stays.id}


def test_what_is_missing_is_told(bench: AuditBench) -> None:
    server = bench.server(bench.network())
    share = bench.share(server, "pool")
    snapshot = bench.snapshot(share, server)
    assert bench.audit()["missing"] == 0
    world = world_of(bench)
    for table in ("snapshots", "shares", "server_addresses", "servers", "ports"):
        world._write(f"DELETE FROM {table}", ())
    assert bench.audit(repair=True)["missing"] == 4
    assert {(row.part, row.kind, row.thing) for row in bench.findings("missing")} == {
        ("driver", "share", share.id),
        ("driver", "snapshot", snapshot.id),
        ("compute", "share_server", server.id),
        ("network fake", "share_server", server.id),
    }


def test_a_late_share_of_a_create_that_was_undone_is_an_orphan(bench: AuditBench) -> None:
    """Its row is there, in error, for its owner to read: nothing of it should be outside."""
    server = bench.server(bench.network())
    share = bench.share(server, "pool")
    with transaction(bench.engine) as connection:
        connection.execute(update(shares).values(status="error", allocated_gib=0))
    bench.audit()
    bench.age()
    assert bench.audit(repair=True)["removed"] == 1
    assert share.id not in everything(world_of(bench))["shares"]


def test_another_backends_orphans_are_its_own_audits_business(bench: AuditBench) -> None:
    server = orphan(bench)
    with transaction(bench.engine) as connection:
        connection.execute(update(tombstones).values(backend="other"))
    bench.audit()
    bench.age()
    result = bench.audit(repair=True)
    assert (result["orphan"], result["unknown"]) == (1, 0), "the network is nobody's"
    assert everything(world_of(bench))["servers"] == {server.id}


def test_periodic_audits_begin_after_an_interval_and_once(bench: AuditBench) -> None:
    with transaction(bench.engine) as connection:
        connection.execute(backends.insert().values(name="fake", report={}))

    def begun() -> int:
        with reading(bench.engine) as connection:
            return len(connection.execute(select(operations.c.id)).all())

    ask_for_audits(bench.runtime)
    assert begun() == 0, "not at once"
    with transaction(bench.engine) as connection:
        connection.execute(update(backends).values(audit_due_at=db_now() - 1))
    for _ in range(3):
        ask_for_audits(bench.runtime)
    assert begun() == 1


def test_a_tombstone_is_kept_while_something_is_left(bench: AuditBench) -> None:
    server = orphan(bench)
    bench.audit()
    with transaction(bench.engine) as connection:
        connection.execute(update(tombstones).values(gone_at=db_now() - 1000))
        assert audits.forget_old(connection, 100, 10) == 0
        connection.execute(audit_findings.delete())
        assert audits.forget_old(connection, 100, 10) == 1
        known = audits.standings(connection, "fake", OwnerKind.SHARE_SERVER, [server.id])
    assert known == {server.id: audits.RowState.UNKNOWN}


@pytest.mark.parametrize("option", ["address_rest", "audit_grace"])
def test_times_that_a_late_worker_would_beat_are_refused(option: str) -> None:
    check_times(Config())
    longest = max(action.timeout for action in ACTIONS.values())
    least = 20 + longest + 10
    check_times(Config.model_validate({"engine": {option: least}}))
    with pytest.raises(ConfigurationError, match=f"engine.{option}"):
        check_times(Config.model_validate({"engine": {option: least - 1}}))
