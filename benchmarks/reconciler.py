"""A pass of the reconciler with 1,000 live operations that are not due, and many finished ones."""

from __future__ import annotations

from functools import partial

from sqlalchemy import text

from benchmarks.bed import Bed, Figures, cpu_seconds, median, own_cpu, ratio, take_turns, tidy
from tests.support.services import PostgresServer
from worker.app import make_app
from worker.db.core.engine import engine_for, transaction
from worker.db.schema import upgrade
from worker.tasks.periodic.reconciler import Reconciler

LIVE = 1_000
FINISHED = (10, 100_000)
PASSES = 100

_FILL = """
INSERT INTO operations (id, project_id, verb, resource_kind, resource_id, payload, payload_digest,
    saga, backend, queue, state, phase, task, dispatch, due_at, queued_at, claimed_at,
    accepted_at, finished_at)
SELECT :state || n, 'p', 'create_share', 'share', :state || n, '{"size": 1}', '', 'create_share',
    'fake', 'steps.default.0', :state, :phase, :task, 1,
    CASE WHEN :live THEN now_s + 3600 END, now_s, now_s, now_s, CASE WHEN NOT :live THEN now_s END
FROM generate_series(1, :count) AS n, (SELECT extract(epoch FROM now()) AS now_s) AS clock
"""


def run(bed: Bed) -> Figures:
    """Measure passes over both."""
    postgres, redis = bed.postgres(), bed.redis()
    sides = {}
    for finished in FINISHED:
        url = postgres.url(postgres.create_database())
        upgrade(url)
        bed.ends_with(engine_for(url).dispose)
        with transaction(engine_for(url)) as connection:
            for state, count in (("running", LIVE), ("succeeded", finished)):
                live = state == "running"
                connection.execute(
                    text(_FILL),
                    {
                        "state": state,
                        "phase": "leased" if live else None,
                        "task": "create_share" if live else "",
                        "live": live,
                        "count": count,
                    },
                )
        tidy(url)
        app = make_app(bed.configuration(url, redis))
        bed.ends_with(app.close)
        reconciler = Reconciler(
            app.sharewright_runtime(),
            depth=lambda _queue: 0,
            ask_for_reports=lambda: None,
            send_renewals=lambda _backend, _servers: None,
            send_checks=lambda _queue, _backends: None,
        )
        reconciler.one_pass()  # connects, and does the housekeeping of the next 30 s
        sides[str(finished)] = partial(_cost, reconciler, postgres)
    costs = take_turns(bed.scale.rounds, sides)
    return {
        **{f"reconciler.pass_ms_at_{name}": median(costs[name]) for name in costs},
        "reconciler.ratio_100000_to_10": ratio(costs["100000"], costs["10"]),
    }


def _cost(reconciler: Reconciler, postgres: PostgresServer) -> float:
    """CPU milliseconds of a pass, PostgreSQL's included."""

    def passes() -> None:
        for _ in range(PASSES):
            assert reconciler.one_pass() == 0, "nothing was due"

    before = cpu_seconds([postgres.pid])
    mine = own_cpu(passes)
    return (mine + cpu_seconds([postgres.pid]) - before) / PASSES * 1000.0
