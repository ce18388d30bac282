"""How long tests wait at most: one limit, and it is longer where the machine is slow or busy.

No test says how quick something is (benchmarks/ does): a limit only ends what would never end. The
pace is measured once, at the start of a run; its processes inherit it.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from typing import Final

WAIT_SECONDS: Final = 120.0
"""The longest wait for anything, on a machine that has nothing else to do."""
TEST_SECONDS: Final = 600.0
"""The longest time that one test takes; several waits fit in."""
_VARIABLE: Final = "SHAREWRIGHT_TESTS_PACE"
_SAMPLE: Final = (
    "import asyncio, hashlib, json, ssl; hashlib.pbkdf2_hmac('sha256', b'', b'', 200_000)"
)
_SAMPLE_SECONDS: Final = 0.15
"""What a sample takes on two idle cores of 2024."""
_SAMPLES: Final = 3


@functools.cache
def factor() -> float:
    """Return how many times as long everything takes here as on an idle machine; 1 at least."""
    if _VARIABLE not in os.environ:
        os.environ[_VARIABLE] = f"{_measure():.2f}"
    return float(os.environ[_VARIABLE])


def slowed(seconds: float) -> float:
    """Return a time of the product's own (a lease, a pause) as it is right for this machine."""
    return seconds * factor()


def limit() -> float:
    """Return after how many seconds a wait has failed."""
    return slowed(WAIT_SECONDS)


def _measure() -> float:
    began = time.monotonic()
    for _ in range(_SAMPLES):
        subprocess.run((sys.executable, "-c", _SAMPLE), check=True)
    return max(1.0, (time.monotonic() - began) / (_SAMPLES * _SAMPLE_SECONDS))
