"""``python -m tests.crash.matrix``: the whole matrix, a fair sample (``--quick``), or one cell."""

from __future__ import annotations

import argparse
import asyncio
import fnmatch
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.crash.matrix import cells
from tests.crash.matrix.cells import ALL, NOT_COMBINED, Cell
from tests.crash.matrix.lane import Lane
from tests.crash.matrix.matrix import Matrix
from tests.support.services import PostgresServer, RedisServer


def main() -> int:
    options = _options()
    chosen = _chosen(options)
    if options.list:
        print("\n".join(map(str, chosen)))
        return 0
    print(f"crash: {len(chosen)} of {len(ALL)} runs", flush=True)
    began = time.monotonic()
    matrix = run_cells(
        chosen,
        workers=options.workers,
        grace=options.grace,
        sabotage=options.sabotage,
        database=options.database,
    )
    matrix.report(time.monotonic() - began)
    if len(chosen) == len(ALL):
        print("Not combined:")
        for what, why in NOT_COMBINED.items():
            print(f"  {what}: {why}.")
        for point, where in sorted(cells.ELSEWHERE.items()):
            print(f"  {point}: it is {where}.")
    return 1 if matrix.broken else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.matrix", description=__doc__)
    parser.add_argument("--only", action="append", help="verb:failpoint:fault, * for any")
    parser.add_argument("--quick", action="store_true", help="a fair sample, always the same")
    parser.add_argument("--list", action="store_true", help="name the runs and do none")
    parser.add_argument("--times", type=int, default=1, help="each run so many times")
    parser.add_argument("--workers", type=int, default=10)
    parser.add_argument("--grace", type=float, default=60.0, help="seconds beyond a lease")
    parser.add_argument("--sabotage", default="", help="a safeguard to take out")
    parser.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql")
    return parser.parse_args()


def _chosen(options: argparse.Namespace) -> list[Cell]:
    chosen: Sequence[Cell] = cells.sample() if options.quick else ALL
    if options.only:
        chosen = [
            cell
            for cell in chosen
            if any(fnmatch.fnmatchcase(str(cell), pattern) for pattern in options.only)
        ]
    return [*chosen] * options.times


def run_cells(
    chosen: Sequence[Cell],
    *,
    workers: int,
    grace: float,
    sabotage: str = "",
    database: str = "postgresql",
) -> Matrix:
    """Start what runs need, make them, and stop it."""
    redis, postgres = RedisServer(), PostgresServer()
    with tempfile.TemporaryDirectory(prefix="sw-crash-") as name:
        directory = Path(name)
        url = f"sqlite:///{directory / 'sharewright.db'}"
        try:
            redis.start()
            if database == "postgresql":
                postgres.start()
                url = postgres.url(postgres.create_database())
            lane = Lane(directory, url, redis, workers=workers, schedulers=3, sabotage=sabotage)
            try:
                matrix = Matrix(lane.start(), workers, grace)
                asyncio.run(matrix.run(chosen))
            finally:
                lane.close()
        finally:
            postgres.close()
            redis.close()
    return matrix


if __name__ == "__main__":
    sys.exit(main())
