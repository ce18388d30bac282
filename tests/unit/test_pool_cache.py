"""The snapshot that placement reads: what it takes in, when, and what is promised by it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, delete, insert, select, update

from scheduler.placement.pool_cache import PoolCache
from scheduler.placement.pools import Pool, reserve
from tests.support.engine import EngineBench
from worker.db.core.engine import db_now, engine_for, reading, transaction
from worker.db.schema import upgrade
from worker.db.tables.main import backends, storage_pools
from worker.model import DriverMode

REPORT = {"mode": str(DriverMode.SINGLE_SVM), "protocols": ["NFS"], "network_kinds": []}


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A database in which backend ``b`` has reported two pools of 100 GiB."""
    upgrade(database_url)
    engine = engine_for(database_url)
    with transaction(engine) as connection:
        connection.execute(insert(backends).values(name="b", report=REPORT, reported_at=db_now()))
        connection.execute(insert(storage_pools), [_row("p1"), _row("p2")])
    yield engine
    engine.dispose()


def _row(name: str) -> dict[str, Any]:
    numbers = {"total_gib": 100, "free_gib": 100, "reported_at": 0.0}
    return {"backend": "b", "name": name, "capabilities": {}, **numbers}


def named(cache: PoolCache, *, fresh: bool = True) -> dict[str, Pool]:
    return {pool.name: pool for pool in cache.pool_table(fresh=fresh)}


def test_a_look_takes_in_what_has_changed_and_no_more(engine: Engine) -> None:
    cache = PoolCache(engine, 2.0, {"b"})
    before = named(cache)
    assert [pool.promisable_gib for pool in before.values()] == [200, 200]
    with transaction(engine) as connection:
        # As long ago as a look at changes cannot see it: what it returns was not read again.
        connection.execute(update(storage_pools).values(changed_at=0.0, free_gib=1))
        connection.execute(update(backends).values(changed_at=0.0))
    assert named(cache) == before
    with transaction(engine) as connection:
        assert reserve(connection, before["p1"], 10, 2.0)
    after = named(cache)
    assert (after["p1"].allocated_gib, after["p1"].shares, after["p1"].free_gib) == (10, 1, 1)
    assert after["p2"] is before["p2"]


def test_within_a_second_only_its_own_choices_count(engine: Engine) -> None:
    cache = PoolCache(engine, 1.0, {"b"})
    pool = named(cache)["p1"]
    with transaction(engine) as connection:
        assert reserve(connection, pool, 10, 1.0)
    assert named(cache, fresh=False)["p1"].allocated_gib == 0
    cache.chosen(pool, 10)
    assert named(cache, fresh=False)["p1"].allocated_gib == 10


def test_a_choice_that_was_rolled_back_is_forgotten(engine: Engine) -> None:
    cache = PoolCache(engine, 1.0, {"b"})
    pool = named(cache)["p1"]
    cache.chosen(pool, 100)
    assert named(cache, fresh=False)["p1"].allocated_gib == 100
    assert named(cache)["p1"].allocated_gib == 0


def test_a_disabled_backend_is_seen_and_one_that_is_not_configured_is_not(engine: Engine) -> None:
    cache, other = PoolCache(engine, 1.0, {"b"}), PoolCache(engine, 1.0, {"c"})
    assert [pool.offer.enabled for pool in cache.pool_table()] == [True, True]
    with transaction(engine) as connection:
        connection.execute(update(backends).values(enabled=False))
    assert [pool.offer.enabled for pool in cache.pool_table(fresh=True)] == [False, False]
    assert list(other.pool_table()) == []


def test_a_pool_that_is_gone_is_forgotten_once_it_was_in_doubt(engine: Engine) -> None:
    cache = PoolCache(engine, 1.0, {"b"})
    pool = named(cache)["p1"]
    with transaction(engine) as connection:
        connection.execute(delete(storage_pools).where(storage_pools.c.name == "p1"))
        assert not reserve(connection, pool, 1, 1.0)
    cache.invalidate(pool)
    assert list(named(cache)) == ["p2"]


def _choose(url: str, size: int) -> int:
    """Promise as much as there is room for, in a process of its own; return how much."""
    engine = engine_for(url)
    cache = PoolCache(engine, 1.0, {"b"})
    promised = 0
    for _ in range(40):
        for pool in cache.pool_table():
            with transaction(engine) as connection:
                if reserve(connection, pool, size, 1.0):
                    cache.chosen(pool, size)
                    promised += size
                    break
    return promised


def test_eight_choosers_never_oversubscribe(engine: Engine, database_url: str) -> None:
    engine.dispose()
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(8, mp_context=fork) as processes:
        # They ask for 640 GiB of the 200 that there are.
        promised = list(processes.map(_choose, [database_url] * 8, [1, 2, 3, 2] * 2))
    with reading(engine) as connection:
        held = connection.execute(select(storage_pools.c.allocated_gib)).scalars().all()
    assert sum(held) == sum(promised)
    assert all(97 < allocated <= 100 for allocated in held)


def test_a_share_goes_to_no_pool_that_is_no_longer_reported(
    tmp_path: Path, sqlite_url: str
) -> None:
    """Shares on a pool keep its row: the backend's next report does not have it any more."""
    with EngineBench(tmp_path, sqlite_url) as bench:
        with transaction(bench.engine) as connection:
            connection.execute(
                insert(storage_pools).values(
                    backend="fake",
                    name="lost",
                    total_gib=1_000_000,
                    free_gib=1_000_000,
                    capabilities={},
                    shares=1,
                    reported_at=db_now() - 60,
                )
            )
        for _ in range(3):
            bench.create()
        assert {row.pool for row in bench.rows("shares")} == {"pool"}
