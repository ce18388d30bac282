"""Quotas: never exceeded, however many ask at once, and adding up whatever came of it."""

from __future__ import annotations

import multiprocessing
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from scheduler.queries.reads import READS
from scheduler.requests.base import parse
from scheduler.requests.verbs import VERBS
from tests.support.engine import EngineBench
from tests.support.intake import take_in
from worker.config import Config
from worker.db.core.engine import db_now, reading, transaction
from worker.db.operations import recovery
from worker.db.tables.main import operations
from worker.errors import Forbidden, InvalidRequest, QuotaExceeded
from worker.model import Phase

PRODUCERS = 16
FRESH = multiprocessing.get_context("forkserver")
"""Not forked from here: SQLite would take the locks that the heartbeat's thread has just now for
locks of the child."""
FRESH.set_forkserver_preload(["tests.support.intake"])


@pytest.fixture
def bench(tmp_path: Path, database_url: str) -> Iterator[EngineBench]:
    with EngineBench(tmp_path, database_url) as made:
        yield made


def quota(bench: EngineBench, roles: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    context = {"project_id": fields.pop("asker", "p1"), "roles": roles}
    request = parse(VERBS["show_quota"], {"version": 1, "context": context, **fields})
    with reading(bench.engine) as connection:
        return READS["show_quota"](connection, request, bench.config)


def counts(bench: EngineBench, resource: str, **fields: Any) -> tuple[int, int, int]:
    found = quota(bench, **fields)[resource]
    return found["limit"], found["in_use"], found["reserved"]


def adds_up(bench: EngineBench) -> None:
    """When nothing is under way, use is what the rows say, and nothing is reserved."""
    shares, kept = bench.rows("shares"), bench.rows("snapshots")
    found = quota(bench)
    assert {name: value["in_use"] for name, value in found.items() if "_id" not in name} == {
        "shares": len(shares),
        "gigabytes": sum(row.size for row in shares),
        "snapshots": len(kept),
        "snapshot_gigabytes": sum(row.size for row in kept),
        "share_networks": len(bench.rows("share_networks")),
    }
    assert not any(value["reserved"] for name, value in found.items() if "_id" not in name)


def set_quota(bench: EngineBench, **fields: Any) -> dict[str, Any]:
    answer: dict[str, Any] = bench.results[bench.ask("set_quota", project_id="p1", **fields)]
    return answer


def _take_in(config: Config, verb: str, fields: dict[str, Any]) -> tuple[str, str, str] | None:
    """Take a request in, in a scheduler's process; return why it was refused."""
    asked = {"version": 1, "context": {"project_id": "p1"}, **fields}
    try:
        take_in(config, verb, asked, str(uuid.uuid4()))
    except QuotaExceeded as refused:
        return refused.code, refused.message, refused.object
    return None


def race(bench: EngineBench, verb: str, asked: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Ask in as many processes at once; return what was refused, and have the rest published."""
    with ProcessPoolExecutor(PRODUCERS, mp_context=FRESH) as processes:
        ends = list(processes.map(partial(_take_in, bench.config, verb), asked))
    o = operations.c
    with transaction(bench.engine) as connection:
        connection.execute(
            update(operations).where(o.phase == Phase.QUEUED.value).values(due_at=db_now() - 1)
        )
        late = recovery.due(connection, (Phase.QUEUED,), 100, known=bench.runtime.sagas.versions)
        bench.dispatches += recovery.redrive(connection, late, republish_after=30)
    return [refused for refused in ends if refused is not None]


def test_racing_creates_stop_at_the_limit(bench: EngineBench) -> None:
    set_quota(bench, shares=5)
    want = {"size": 1, "share_network_id": bench.network_id}
    refused = race(bench, "create_share", [want] * PRODUCERS)
    assert len(refused) == PRODUCERS - 5
    assert counts(bench, "shares") == (5, 0, 5)
    code, message, about = refused[0]
    assert (code, about) == ("quota_exceeded", "quota p1")
    assert "may have 5 shares" in message
    bench.drive()
    assert counts(bench, "shares") == (5, 5, 0)
    bench.ask("delete_share", share_id=bench.share_row().id)
    with pytest.raises(QuotaExceeded):
        bench.create()  # what is being deleted counts until it is gone
    bench.drive()
    bench.create()
    bench.drive()
    adds_up(bench)


def test_racing_extends_stop_at_the_limit(bench: EngineBench) -> None:
    for _ in range(4):
        bench.create()
    bench.drive()
    set_quota(bench, gigabytes=10)
    shares = [row.id for row in bench.rows("shares")]
    asked = [{"share_id": shares[n % 4], "new_size": 3} for n in range(PRODUCERS)]
    refused = race(bench, "extend_share", asked)
    # Of 10 GiB, 4 are in use; three shares can grow by 2, again and again to the same size.
    assert counts(bench, "gigabytes") == (10, 4, 6)
    assert len(refused) == 4
    bench.drive()
    assert counts(bench, "gigabytes") == (10, 10, 0)
    adds_up(bench)


def test_what_failed_is_given_back(bench: EngineBench) -> None:
    set_quota(bench, gigabytes=4)
    bench.create()
    bench.drive()
    share = bench.share_row().id
    bench.world.arm("extend_share", "fatal")
    bench.ask("extend_share", share_id=share, new_size=4)
    assert counts(bench, "gigabytes") == (4, 1, 3)
    with pytest.raises(QuotaExceeded):
        bench.create()
    bench.drive()
    assert counts(bench, "gigabytes") == (4, 1, 0)
    bench.ask("extend_share", share_id=share, new_size=4)
    bench.drive()
    adds_up(bench)


def test_snapshots_and_share_networks_are_counted(bench: EngineBench) -> None:
    bench.ask("create_share", size=3, share_network_id=bench.network_id)
    bench.drive()
    share = bench.share_row().id
    set_quota(bench, snapshots=5, snapshot_gigabytes=6, share_networks=2)
    refused = race(bench, "create_snapshot", [{"share_id": share}] * 4)
    assert len(refused) == 2
    assert counts(bench, "snapshot_gigabytes") == (6, 0, 6)
    networks = [{"flat_network_ip_pool": ["10.1.0.0/24"]}] * PRODUCERS
    assert len(race(bench, "create_share_network", networks)) == PRODUCERS - 1
    bench.drive()
    assert counts(bench, "snapshots") == (5, 2, 0)
    adds_up(bench)


def test_a_share_type_has_limits_of_its_own(bench: EngineBench) -> None:
    gold = bench.results[bench.ask("create_share_type", name="gold")]["id"]
    set_quota(bench, share_type="gold", shares=1)
    want = {"size": 1, "share_network_id": bench.network_id}
    bench.ask("create_share", share_type="gold", **want)
    with pytest.raises(QuotaExceeded) as caught:
        bench.ask("create_share", share_type="gold", **want)
    assert f"of share type {gold}" in caught.value.message
    bench.ask("create_share", **want)
    assert counts(bench, "shares", share_type="gold") == (1, 0, 1)
    assert counts(bench, "shares") == (-1, 0, 2)
    assert "share_networks" not in quota(bench, share_type="gold")
    with pytest.raises(InvalidRequest):
        set_quota(bench, share_type="gold", share_networks=1)


def test_unset_gives_the_defaults_back(tmp_path: Path, sqlite_url: str) -> None:
    with EngineBench(tmp_path, sqlite_url, "[quotas]\nshares = 0\n") as bench:
        with pytest.raises(QuotaExceeded):
            bench.create()
        assert set_quota(bench, shares=-1)["shares"]["limit"] == -1
        bench.create()
        unset = bench.results[bench.ask("unset_quota", project_id="p1")]
        assert unset["shares"] == {"limit": 0, "in_use": 0, "reserved": 1}


def test_another_projects_quota_is_the_administrators(bench: EngineBench) -> None:
    with pytest.raises(Forbidden):
        quota(bench, asker="p2", project_id="p1")
    assert quota(bench, ("admin",), asker="p2", project_id="p1")["project_id"] == "p1"
    with pytest.raises(InvalidRequest) as caught:
        set_quota(bench)
    assert "at least one limit" in caught.value.message
