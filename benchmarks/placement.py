"""Choosing among storage pools with 20 extra specs, the reservation included.

Every pool has what is asked for, which is the dearest case: all specs are compared and all pools
judged. Once a second the snapshot takes in what has changed, whatever is asked, and once a minute
it is read whole; both are booked by themselves, the first with nothing changed.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from sqlalchemy import Engine, insert

from benchmarks.bed import Bed, Figures, median, own_cpu, take_turns, tidy
from scheduler.acceptance.accept import Acceptance
from scheduler.acceptance.shares import _place
from scheduler.placement.filters import PlacementRequest
from scheduler.placement.pool_cache import PoolCache, cache_for
from scheduler.requests.verbs import VERBS
from worker.config import Config
from worker.db.core.engine import db_now, engine_for, transaction
from worker.db.schema import upgrade
from worker.db.tables.main import backends, storage_pools
from worker.model import DriverMode, NetworkKind
from worker.tasks.sagas import SAGAS

POOLS = (10, 1_000, 10_000)
A_BACKEND = 10
"""Pools of one backend."""
SPECS = {f"feature_{number}": f"value_{number}" for number in range(20)}
WANTED = PlacementRequest(
    size=1,
    share_proto="NFS",
    network_kind=NetworkKind.FLAT_POOL,
    extra_specs=SPECS,
    report_expiry=3600.0,
)


def run(bed: Bed) -> Figures:
    """Measure the median of single choices, and of reading the snapshot."""
    postgres = bed.postgres()
    choices = bed.scale.pick(30, 10)
    configs: dict[int, Config] = {}
    caches: dict[int, PoolCache] = {}
    sides = {}
    for count in POOLS:
        url = postgres.url(postgres.create_database())
        upgrade(url)
        engine = engine_for(url)
        bed.ends_with(engine.dispose)
        _fill(engine, count)
        tidy(url)
        configs[count] = _config(bed, url, count)
        caches[count] = cache_for(configs[count], engine)
        sides[count] = partial(_choose, configs[count], caches[count], choices)
    found = take_turns(bed.scale.rounds, {str(count): side for count, side in sides.items()})
    figures = {f"placement.ms_at_{name}": median(costs) for name, costs in found.items()}
    for count, cache in caches.items():
        figures[f"placement.changes_ms_at_{count}"] = median(
            own_cpu(partial(cache.pool_table, fresh=True)) * 1000.0 for _ in range(bed.scale.rounds)
        )
        figures[f"placement.whole_ms_at_{count}"] = median(
            own_cpu(cache_for(configs[count], cache.engine).pool_table) * 1000.0
            for _ in range(bed.scale.rounds)
        )
    return figures


def _config(bed: Bed, url: str, count: int) -> Config:
    settings = bed.configuration(url)
    fake = settings.backends["fake"]
    names = {f"backend-{number}": fake for number in range(count // A_BACKEND)}
    return settings.model_copy(update={"backends": names})


def _fill(engine: Engine, count: int) -> None:
    names = [f"backend-{number}" for number in range(count // A_BACKEND)]
    report: dict[str, Any] = {
        "mode": DriverMode.FLAT_MULTI_SVM.value,
        "protocols": ["NFS"],
        "network_kinds": [NetworkKind.FLAT_POOL.value],
    }
    pool = {"total_gib": 100_000, "free_gib": 100_000, "capabilities": SPECS}
    with transaction(engine) as connection:
        connection.execute(
            insert(backends).values(reported_at=db_now(), report=report),
            [{"name": name} for name in names],
        )
        connection.execute(
            insert(storage_pools).values(reported_at=db_now()),
            [
                {"backend": name, "name": f"pool-{number}", **pool}
                for name in names
                for number in range(A_BACKEND)
            ],
        )


def _choose(config: Config, cache: PoolCache, choices: int) -> float:
    """Median CPU milliseconds of one choice with its reservation, committed."""

    def choose() -> None:
        with transaction(cache.engine) as connection:
            acceptance = Acceptance(
                connection,
                config,
                SAGAS,
                cache,
                VERBS["create_share"],
                None,
                "",
                "",
                is_admin=False,
            )
            _place(acceptance, WANTED)

    return median(own_cpu(choose) * 1000.0 for _ in range(choices))
