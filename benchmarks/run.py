"""``python -m benchmarks.run``: every measure, a table, and ``benchmarks/latest.json``."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol, cast

from rich.console import Console
from rich.table import Table

from benchmarks.bars import BARS
from benchmarks.bed import Bed, Figures, Scale

MEASURES: Final = (
    *("addresses", "chains", "placement", "reconciler", "listing"),
    *("service", "scaling", "backends"),
)
"""One module each in this folder; this is also the order in which they run."""

LATEST: Final = Path(__file__).parent / "latest.json"


class Measure(Protocol):
    """What a measure's module has."""

    def run(self, bed: Bed) -> Figures:
        """Measure; figures by their full names."""
        ...


def main() -> int:
    """Run what was asked for; 1 when a bar is missed in a full run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, 2 rounds: a smoke test")
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=MEASURES, metavar="NAME")
    options = parser.parse_args()
    figures: Figures = {}
    for name in options.only:
        began = time.monotonic()
        measure = cast("Measure", importlib.import_module(f"benchmarks.{name}"))
        with Bed(Scale(full=not options.quick)) as bed:
            figures |= measure.run(bed)
        _write(figures, quick=options.quick)  # what was found stays, should a later measure fail
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return _show(figures, quick=options.quick)


def _write(figures: Figures, *, quick: bool) -> None:
    document = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "measures": {name: round(value, 4) for name, value in figures.items()},
    }
    LATEST.write_text(json.dumps(document, indent=2) + "\n")


def _show(figures: Figures, *, quick: bool) -> int:
    table = Table(title="Quick run: sizes are too small for a verdict" if quick else None)
    for heading in ("measure", "value", "bar", ""):
        table.add_column(heading, justify="left" if heading == "measure" else "right")
    missed = 0
    for name, value in figures.items():
        bar = BARS.get(name)
        cancel_reason = ""
        if bar is not None:
            met = bar.is_met(value, figures)
            missed += not met
            cancel_reason = "met" if met else "MISSED"
        table.add_row(name, f"{value:.3g}", bar.text if bar else "", cancel_reason)
    Console(width=None if sys.stdout.isatty() else 100).print(table)
    return 1 if missed and not quick else 0


if __name__ == "__main__":
    sys.exit(main())
