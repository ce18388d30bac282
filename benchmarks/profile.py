"""``python -m benchmarks.profile create_share``: where the CPU of one operation goes.

py-spy (``pip install py-spy``) samples scheduler and worker from outside while a batch runs, each
thread while it holds the interpreter's lock (others may only wait); what is done without the lock
(system calls, libpq) is therefore in no book. Every sample goes to one kind of work.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.bed import Bed, Scale
from benchmarks.flame import svg, tree_of
from benchmarks.sides import Ours, Raw, Side
from tests.support.services import ROOT, require

BEGINNINGS: Final = {
    "Hub.create_loop ": "event loops of scheduler and worker",
    "Worker.workloop ": "the worker's children",
}
"""Where a flame graph begins."""
SHARES: Final = 600
RATE: Final = 100
"""Samples a second. Sampling stops a process for a moment: shares of time count, not the time."""

BOOKS: Final = (
    # A sample goes to the first of these that has a frame on its stack. A forked child's stack
    # begins with its parent's, so what is found in every stack stands last.
    ("the fakes' own SQLite", (f"{ROOT}/worker/fake",)),
    ("events", ("/celery/events/",)),
    ("result: store", ("/celery/backends/",)),
    ("message: acknowledge", (".ack (", ".acknowledge (")),
    ("message: publish", (".publish (", ".apply_async (", ".send_task (")),
    ("SQL: driver", ("/psycopg/",)),
    ("SQL: SQLAlchemy", ("/sqlalchemy/",)),
    ("message: our checks on receiving", ("._as_message (", f"fault ({ROOT}/worker/")),
    (
        "our Python",
        (f"{ROOT}/worker/engine/runner.py", ";_take (", f"{ROOT}/worker/engine/heartbeat.py"),
    ),
    ("Celery around the task", ("/celery/app/trace.py",)),
    ("child: waiting and the pool's pipe", (";workloop (",)),
    ("main: receive and hand to the pool", ("/celery/worker/", "/kombu/")),
)


def main() -> int:
    """Profile one operation and print the books."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("what", choices=("create_share", "delete_share", "raw_chain"))
    parser.add_argument("--keep", type=Path, help="also write the folded stacks to this directory")
    parser.add_argument("--flame", type=Path, help="also draw a flame graph into this SVG file")
    options = parser.parse_args()
    spy = require("py-spy")
    with Bed(Scale(full=True)) as bed:
        side, batch = _prepare(bed, options.what)
        directory = options.keep or bed.directory()
        spies = [
            _spy(spy, process.pid, directory / f"{options.what}.{name}.folded")
            for name, process in side.processes.items()
            if name != "reconciler"
        ]
        cost = batch()
        for one in spies:
            one.send_signal(signal.SIGINT)  # on another signal py-spy writes nothing
            one.wait(30)
        lines = [
            line
            for folded in sorted(directory.glob(f"{options.what}.*.folded"))
            for line in folded.read_text().splitlines()
        ]
    stores: Counter[str] = Counter()
    for line in lines:
        stack, _, samples = line.rpartition(" ")
        stores[_store(stack)] += int(samples)
    if options.flame:
        title = f"{options.what}: CPU of scheduler and worker that holds the interpreter's lock"
        options.flame.write_text(svg(tree_of(lines, BEGINNINGS), title))
    total = sum(stores.values())
    print(f"{options.what}: {total} samples while {cost:.1f} ms of CPU went into each operation")
    for name, samples in stores.most_common():
        print(f"  {samples / total:6.1%}  {name}")
    return 0


def _prepare(bed: Bed, what: str) -> tuple[Side, Callable[[], float]]:
    if what == "raw_chain":
        raw = Raw(bed)
        raw.side.batch([raw.publish] * 20)
        return raw.side, lambda: raw.side.batch([raw.publish] * SHARES).worker_ms
    ours = Ours(bed)
    [network] = ours.networks(1)
    ours.side.batch(ours.shares(20, share_network_id=network))
    requests = ours.shares(SHARES, share_network_id=network)
    if what == "delete_share":
        requests = ours.deletions(ours.side.batch(requests).results)
    return ours.side, lambda: ours.side.batch(requests).worker_ms


def _spy(spy: str, pid: int, folded: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        (
            *(spy, "record", "--subprocesses", "--gil", "--format", "raw", "--full-filenames"),
            *("--rate", str(RATE), "--duration", "600", "-o", str(folded), "-p", str(pid)),
        ),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _store(stack: str) -> str:
    for name, parts in BOOKS:
        if any(part in stack for part in parts):
            return name
    return "the rest"


if __name__ == "__main__":
    sys.exit(main())
