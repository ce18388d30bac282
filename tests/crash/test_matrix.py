"""Tests of the tests: without any one of these safeguards, the matrix finds a broken promise."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash.matrix.cells import BY_NAME
from tests.crash.matrix.lane import Lane
from tests.crash.matrix.matrix import Matrix
from tests.crash.matrix.sabotage import SABOTAGES
from tests.support.pace import limit
from tests.support.services import ROOT, RedisServer

GRACE = 6.0
"""Seconds after which a run that goes on for ever is taken for stuck."""


def _waits(name: str) -> bool:
    """Whether it takes the whole grace to see that nothing moves any more."""
    return "stuck" in SABOTAGES[name].kinds


def test_every_safeguard_is_where_it_is_taken_out() -> None:
    """In a process of its own: what is taken out stays out."""
    take_out = "from tests.crash.matrix.sabotage import *; [s.apply() for s in SABOTAGES.values()]"
    subprocess.run([sys.executable, "-c", take_out], check=True, cwd=ROOT, timeout=limit())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.whole if _waits(name) else ())
        for name in sorted(SABOTAGES)
    ],
)
def test_the_matrix_sees_what_is_missing(
    name: str, tmp_path: Path, postgres_url: str, redis_server: RedisServer
) -> None:
    sabotage = SABOTAGES[name]
    lane = Lane(tmp_path, postgres_url, redis_server, workers=4, schedulers=1, sabotage=name)
    try:
        matrix = Matrix(lane.start(), workers=4, grace=GRACE)
        asyncio.run(matrix.run([BY_NAME[cell] for cell in sabotage.cells]))
    finally:
        lane.close()
    assert {kind for kind, _, _ in matrix.broken} & sabotage.kinds, matrix.broken
    assert "void" not in {kind for kind, _, _ in matrix.broken}
