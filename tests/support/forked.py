"""Workers that are up again a moment after they were killed: forked where all is imported.

Run it as ``python -m tests.support.forked GROUP NUMBER DIRECTORY``; the workers are its
children, each with one step at a time and a log in the directory. It prints how each one ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

from scheduler.service import tree
from scheduler.service.roles import warm_up
from worker.app import run_worker
from worker.config import load


def main(group: str, number: str, directory: str) -> None:
    config = load()
    warm_up(config)

    def begin(name: str) -> int:
        log = Path(directory) / f"{name}.log"
        return tree.fork(name, log, (), lambda: run_worker(config, group, concurrency=1, name=name))

    running = {begin(name): name for name in (f"worker-{one}" for one in range(int(number)))}
    while True:
        pid, status = os.wait()
        print("ended:", os.waitstatus_to_exitcode(status), flush=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        name = running.pop(pid)
        running[begin(name)] = name


if __name__ == "__main__":
    main(*sys.argv[1:])
