"""All runs, as many at once as do not disturb one another, and what came of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from itertools import islice
from typing import Final

from tests.crash.matrix.cells import RECONCILER_POINT, Cell
from tests.crash.matrix.external import KINDS
from tests.crash.matrix.lane import Lane
from tests.crash.matrix.run import Broken, Run
from tests.crash.matrix.verbs import play

ACTIVE: Final = 24
HOLDING: Final = frozenset({"hang", "stop", "stop-long", "stale"})
PROGRESS_SECONDS: Final = 10.0


class Matrix:
    """Plays cells on a lane and keeps what they broke."""

    def __init__(self, lane: Lane, workers: int, grace: float) -> None:
        self.lane = lane
        self.grace = grace
        self.broken: list[tuple[str, Cell | None, str]] = []
        self.cells: dict[str, Cell] = {}
        """The cell of each project."""
        self.done: list[Run] = []
        self._holding = asyncio.Semaphore(workers - 3)
        # One that is held holds up others: never two of the schedulers, or both reconcilers.
        self._at_intake = asyncio.Semaphore(1)
        self._at_reconciler = asyncio.Semaphore(1)

    async def run(self, chosen: Sequence[Cell]) -> None:
        """Play them all; then look whether anything is left anywhere."""
        looking = [
            asyncio.create_task(self.lane.look()),
            asyncio.create_task(self._progress(len(chosen))),
        ]
        waiting = iter(chosen)
        active: set[asyncio.Task[None]] = set()
        try:
            while True:
                active |= {
                    asyncio.create_task(self._play(cell))
                    for cell in islice(waiting, ACTIVE - len(active))
                }
                if not active:
                    break
                done, active = await asyncio.wait(active, return_when="FIRST_COMPLETED")
                for task in done:
                    task.result()
        finally:
            for task in looking:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        self._look_at_all()

    async def _play(self, cell: Cell) -> None:
        run = Run(self.lane, cell, self.grace)
        self.cells[run.project] = cell
        async with AsyncExitStack() as held:
            if cell.point == RECONCILER_POINT:
                await held.enter_async_context(self._at_reconciler)
            elif cell.fault in HOLDING:
                at_intake = cell.point.startswith("intake.")
                await held.enter_async_context(self._at_intake if at_intake else self._holding)
            self.lane.watched.add(run.project)
            try:
                await play(run)
            except Broken as broken:
                timeline = self.lane.timeline(run.project)
                self._note(broken.kind, cell, f"{broken}\n{timeline}")
            finally:
                run.go_on()
                self.lane.watched.discard(run.project)
                self.done.append(run)

    def _note(self, kind: str, cell: Cell | None, sentence: str) -> None:
        self.broken.append((kind, cell, sentence))
        print(f"{kind}: {cell}: {sentence}", flush=True)

    def _look_at_all(self) -> None:
        known = {cell for _, cell, _ in self.broken}
        for finding in (
            *self.lane.external.left(),
            *self.lane.external.repeated(),
            *self.lane.multiplied(),
        ):
            cell = self.cells.get(finding.project)
            if cell is None or cell not in known:
                self._note(finding.kind, cell, finding.sentence)

    async def _progress(self, total: int) -> None:
        began = time.monotonic()
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            seconds = time.monotonic() - began
            counts = self._counts()
            print(
                f"  {seconds:4.0f} s: {len(self.done)} of {total} runs, "
                + ", ".join(f"{counts[kind]} {kind}" for kind in KINDS),
                flush=True,
            )

    def _counts(self) -> Counter[str]:
        return Counter(kind for kind, _, _ in self.broken)

    def report(self, seconds: float) -> None:
        """What came of them, in one line; and how to see each broken promise again."""
        counts = self._counts()
        cells = {run.cell for run in self.done}
        for cell in sorted({str(cell) for _, cell, _ in self.broken if cell is not None}):
            print(f"  again: python -m tests.crash.matrix --only {cell}")
        if counts["void"]:
            print(f"  {counts['void']} faults never struck: the matrix itself is wrong there.")
        waits = sorted(run.longest for run in self.done if run.longest)
        if waits:
            print(
                f"  from the fault to rest: median {waits[len(waits) // 2]:.1f} s, "
                f"longest {waits[-1]:.1f} s; all in {seconds:.0f} s"
            )
        print(
            f"crash: {len({cell.point for cell in cells})} points, "
            f"{len({cell.fault for cell in cells})} faults, {len(self.done)} runs, "
            + ", ".join(f"{counts[kind]} {kind}" for kind in KINDS)
        )
