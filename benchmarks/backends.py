"""What a share costs with 1, 100 and 4,000 backends configured and reported.

The reports themselves are not in it (they come by the clock, not by the share), but the scheduler
reads all pools once a second, and chooses among them for each share.
"""

from __future__ import annotations

from functools import partial

from benchmarks.bed import Bed, Figures, median, ratio, take_turns
from benchmarks.sides import FAKES, Ours, Publish

BACKENDS = (1, 100, 4_000)
QUEUES = 10

_ANOTHER = """
[backends.b{number}]
mode = "flat_multi_svm"
share_driver = "fake"
compute_helper = "fake"
network_helpers = ["fake"]
share_network_addresses = true
driver.log_calls = false
compute.log_calls = false
network.fake.log_calls = false
"""


def run(bed: Bed) -> Figures:
    """Measure all side by side; shares go wherever placement puts them."""
    count = bed.scale.pick(150, 40)
    sides = {}
    for number in BACKENDS if bed.scale.full else BACKENDS[:2]:
        groups = f"[groups.default]\nqueues = {QUEUES if number > QUEUES else 1}\n"
        others = "".join(_ANOTHER.format(number=one) for one in range(1, number))
        ours = Ours(bed, settings=groups + FAKES + others, backends=number, reports=86400.0)
        networks = ours.networks(1)
        share = partial(ours.shares, share_network_id=networks[0])
        ours.side.batch(share(20))
        sides[str(number)] = partial(_cost, ours, share(count))
    found = take_turns(bed.scale.rounds, sides)
    figures = {f"backends_{name}.share_cpu_ms": median(found[name]) for name in found}
    for name in list(sides)[1:]:
        figures[f"backends_{name}.cost_ratio"] = ratio(found[name], found["1"])
    return figures


def _cost(ours: Ours, requests: list[Publish]) -> float:
    """CPU milliseconds of workers, PostgreSQL and Redis for one share."""
    return ours.side.batch(requests).total_ms
