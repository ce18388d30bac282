"""Pages of 100,000 shares of one project: the first, one in the middle, and a filtered one."""

from __future__ import annotations

from functools import partial
from typing import Any

from sqlalchemy import select, text

from benchmarks.bed import Bed, Figures, median, seconds, take_turns, tidy
from scheduler.queries.reads import READS
from scheduler.requests.base import parse
from scheduler.requests.verbs import VERBS
from worker.config import Config
from worker.db.core.engine import engine_for, reading, transaction
from worker.db.schema import upgrade
from worker.db.tables.main import shares

COUNT = 100_000
PAGES = 10

_FILL = """
INSERT INTO shares (id, project_id, name, metadata, size, share_proto, backend, pool,
    allocated_gib, status, export_locations, created_at, updated_at)
SELECT md5(n::text), 'p1', 'share-' || n, '{}', 1, 'NFS', 'fake', 'pool', 1, 'available',
    '[{"path": "10.0.0.1:/s", "preferred": true}]', n, n
FROM generate_series(1, :count) AS n
"""


def run(bed: Bed) -> Figures:
    """Measure a page as the scheduler makes it: validated, read, shown. Wall-clock."""
    postgres = bed.postgres()
    url = postgres.url(postgres.create_database())
    upgrade(url)
    bed.ends_with(engine_for(url).dispose)
    with transaction(engine_for(url)) as connection:
        connection.execute(text(_FILL), {"count": COUNT})
        middle = connection.execute(
            select(shares.c.id).where(shares.c.created_at == COUNT / 2)
        ).scalar_one()
    tidy(url)
    config = bed.configuration(url)
    sides = {
        "first": partial(_page, config, {}),
        "middle": partial(_page, config, {"marker": middle}),
        "filtered": partial(_page, config, {"status": "available", "marker": middle}),
        "all_projects": partial(_page, config, {"all_projects": True, "marker": middle}),
    }
    found = take_turns(bed.scale.rounds, sides)
    figures = {f"listing.{name}_page_ms": median(times) for name, times in found.items()}
    worst = max(median(found[name]) for name in ("first", "middle", "filtered"))
    return {**figures, "listing.page_ms_at_100000": worst}


def _page(config: Config, fields: dict[str, Any]) -> float:
    """Median milliseconds of a page of 100."""
    context = {"project_id": "p1", "roles": ["admin"]}
    payload = {"version": 1, "context": context, "limit": 100, **fields}

    def page() -> None:
        request = parse(VERBS["list_shares"], payload)
        with reading(engine_for(config.database.url)) as connection:
            answer = READS["list_shares"](connection, request, config)
        assert len(answer["shares"]) == 100, answer

    return median(seconds(page) * 1000.0 for _ in range(PAGES))
