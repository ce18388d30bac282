"""The processes of the matrix: as ``sharewright`` starts them, again a moment after each death.

``python -m tests.crash.matrix.launcher DIRECTORY WORKERS SCHEDULERS TIMEOUT [SABOTAGE]``. Each
worker does one step at a time, so that a kill of its main process hits one operation. ``TIMEOUT``
in seconds is every step's own, which the acts declare as minutes: a hang past it must not take
minutes here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import worker.app
from scheduler.intake import run_scheduler
from scheduler.service import tree
from scheduler.service.roles import warm_up
from tests.crash.matrix.sabotage import SABOTAGES
from worker.app import run_reconciler, run_worker
from worker.config import Config, load
from worker.logs import set_up_logging
from worker.tasks.sagas import ACTIONS

GROUP: Final = "default"
RECONCILERS: Final = 2
HARD_LIMIT_GRACE: Final = 120
"""A stopped child must live until it is continued."""


def _reconciler(config: Config) -> int:
    set_up_logging(config.log)
    run_reconciler(config, threading.Event())
    return 0


def _roles(config: Config, workers: int, schedulers: int) -> dict[str, Callable[[], int]]:
    def worker_named(name: str) -> Callable[[], int]:
        return lambda: run_worker(config, GROUP, concurrency=1, name=name)

    def scheduler() -> int:
        return run_scheduler(config, concurrency=1, pool="prefork")

    return {
        **{f"scheduler-{number}": scheduler for number in range(schedulers)},
        **{name: worker_named(name) for name in (f"worker-{one}" for one in range(workers))},
        **{f"reconciler-{one}": lambda: _reconciler(config) for one in range(RECONCILERS)},
    }


def main(directory: str, workers: str, schedulers: str, timeout: str, sabotage: str = "") -> None:
    config = load()
    for action in ACTIONS.values():
        object.__setattr__(action, "timeout", float(timeout))
    worker.app.HARD_LIMIT_GRACE = HARD_LIMIT_GRACE  # type: ignore[misc] - see there
    if sabotage:
        SABOTAGES[sabotage].apply()
    warm_up(config)
    roles = _roles(config, int(workers), int(schedulers))

    def begin(name: str) -> int:
        return tree.fork(name, Path(directory) / f"{name}.log", (), roles[name])

    running = {begin(name): name for name in roles}
    while True:
        pid, status = os.wait()
        name = running.pop(pid)
        print(f"{name} ended: {os.waitstatus_to_exitcode(status)}", flush=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        running[begin(name)] = name


if __name__ == "__main__":
    main(*sys.argv[1:])
