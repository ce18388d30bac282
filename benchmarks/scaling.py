"""Throughput with 1, 2 and 4 worker processes, beside bare Celery's with as many.

On a machine of two cores the second process is all there is to gain; what shows is whether more
of them get in each other's way. A share is taken in by a process of its own, which is at work
beside a single worker process already; ``raw_to_intake`` is bare Celery with such a process.

Virtual machines change their speed within minutes, by half. What is divided by one another is
therefore measured right after one another, and there are more rounds than elsewhere.
"""

from __future__ import annotations

from functools import partial

from benchmarks.bed import Bed, Figures, median, ratio, take_turns
from benchmarks.sides import FAKES, Ours, Publish, Raw

PROCESSES = (1, 4, 2)


def run(bed: Bed) -> Figures:
    """Measure operations a second; each side restarts its worker with another concurrency."""
    raw, ours = Raw(bed), Ours(bed, settings=FAKES, backends=1)
    [network] = ours.networks(1)
    ours.side.batch(ours.shares(1, share_network_id=network))
    count = bed.scale.pick(300, 60)
    sides = {}
    for number in PROCESSES:
        sides[f"raw_{number}"] = partial(_raw, raw, raw.publish, number, count)
    for number in PROCESSES:
        sides[f"raw_to_intake_{number}"] = partial(_raw, raw, raw.publish_by_intake, number, count)
    for number in PROCESSES:
        sides[f"{number}"] = partial(_ours, ours, network, number, count)
    found = take_turns(bed.scale.pick(9, 2), sides)
    figures = {f"scaling.{name}_per_second": median(found[name]) for name in found}
    for prefix in ("", "raw_", "raw_to_intake_"):
        for under in (1, 2):
            figures[f"scaling.{prefix}ratio_4_to_{under}"] = ratio(
                found[f"{prefix}4"], found[f"{prefix}{under}"]
            )
    return figures


def _raw(raw: Raw, publish: Publish, concurrency: int, count: int) -> float:
    raw.start_worker(concurrency)
    raw.side.batch([publish] * 20)
    return raw.side.batch([publish] * count).per_second


def _ours(ours: Ours, network: str, concurrency: int, count: int) -> float:
    ours.start_worker(concurrency)
    ours.side.batch(ours.shares(20, share_network_id=network))
    return ours.side.batch(ours.shares(count, share_network_id=network)).per_second
