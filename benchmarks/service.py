"""``sharewright up``: how soon it is ready, and its memory idle and after many shares; ``--help``.

Memory is the proportional set size: what processes share is counted once. Python's own start is
measured beside ``--help``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil

from benchmarks.bed import Bed, Figures, median, seconds, take_turns
from scheduler.client import Client
from tests.support.deployment import FAKE_BACKEND
from tests.support.services import ROOT, Process, python

IDLE_SECONDS = 3.0
IN_FLIGHT = 50
MIB = 2.0**20


def run(bed: Bed) -> Figures:
    """Measure starts of the command and of the service, then its memory."""
    helps = take_turns(
        bed.scale.pick(11, 5),
        {
            "help": lambda: _command("-m", "scheduler.cli", "--help"),
            "python": lambda: _command("-c", ""),
        },
    )
    figures: Figures = {
        "cli.help_ms": median(helps["help"]),
        "cli.python_ms": median(helps["python"]),
    }
    starts, idle = [], []
    for _ in range(bed.scale.rounds):
        home = bed.directory()
        up = _up(home)
        bed.ends_with(up.close)
        starts.append(seconds(partial(up.start, "ready:")))
        time.sleep(IDLE_SECONDS)
        idle.append(_pss(up))
        if len(starts) < bed.scale.rounds:
            up.terminate()
    figures["up.ready_s"] = median(starts)
    figures["memory.idle_pss_mib"] = median(idle)
    shares = bed.scale.pick(2_000, 100)
    _shares(home, shares)
    figures[f"memory.after_{shares}_pss_mib"] = _pss(up)
    up.terminate()
    return figures


def _command(*arguments: str) -> float:
    def command() -> None:
        subprocess.run((sys.executable, *arguments), check=True, capture_output=True, cwd=ROOT)

    return seconds(command) * 1000.0


def _up(home: Path) -> Process:
    (home / "sharewright.toml").write_text(f"[health]\nport = 0\n{FAKE_BACKEND}")
    return Process(python("scheduler.cli", "up", "--home", str(home)), log=home / "up.log")


def _pss(up: Process) -> float:
    """MiB of the supervisor and everything that it started."""
    members = [psutil.Process(pid) for pid in (up.pid, *up.children())]
    return float(sum(member.memory_full_info().pss for member in members)) / MIB


def _shares(home: Path, count: int) -> None:
    """Make shares on one network, some at a time."""
    service = json.loads((home / "service.json").read_text())
    client = Client(service["broker_url"], service["result_backend"])
    basis = {"version": 1, "context": {"project_id": "p"}}
    asked = client.submit(
        "create_share_network", {**basis, "flat_network_ip_pool": ["10.0.0.0/24"]}
    )
    network = client.result(asked, timeout=60)["id"]
    for first in range(0, count, IN_FLIGHT):
        ids = [f"bench-{first + number}" for number in range(min(IN_FLIGHT, count - first))]
        for operation_id in ids:
            payload = {**basis, "size": 1, "share_network_id": network}
            client.send("create_share", payload, operation_id=operation_id)
        for operation_id in ids:
            client.result(operation_id, timeout=60)
    client.close()
