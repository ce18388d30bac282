"""What a share costs with 1, 100 and 4,000 backends configured and reported.

The reports themselves are not in it (they come by the clock, not by the share), but the scheduler
reads all pools once a second, and chooses among them for each share.

``cost_ratio`` is for shares in ``single_svm``, which are spread over backends that are alike;
``on_servers_cost_ratio`` for those of one share network, which stay on one share server.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from benchmarks.bed import Bed, Figures, median, ratio, take_turns
from benchmarks.sides import FAKES, Ours, Publish

BACKENDS: Final = (1, 100, 4_000)
QUEUES: Final = 10

_SINGLE: Final = """
[backends.b{number}]
mode = "single_svm"
share_driver = "fake"
driver.log_calls = false
"""
_LOG, _, _FAKE = FAKES.partition("[backends.fake]")
_ON_SERVERS: Final = "[backends.b{number}]" + _FAKE
_KINDS: Final = {"": _SINGLE, "on_servers_": _ON_SERVERS}


def run(bed: Bed) -> Figures:
    """Measure all side by side."""
    count = bed.scale.pick(150, 40)
    figures: Figures = {}
    for kind, backend in _KINDS.items():
        sides = {}
        for number in BACKENDS if bed.scale.full else BACKENDS[:2]:
            ours = _site(bed, backend, number)
            fields: dict[str, Any] = {}
            if kind:
                [fields["share_network_id"]] = ours.networks(1)
            share = partial(ours.shares, **fields)
            ours.side.batch(share(20))
            sides[str(number)] = partial(_cost, ours, share(count))
        found = take_turns(bed.scale.rounds, sides)
        for name in found:
            figures[f"backends_{name}.{kind}share_cpu_ms"] = median(found[name])
        for name in list(sides)[1:]:
            figures[f"backends_{name}.{kind}cost_ratio"] = ratio(found[name], found["1"])
    return figures


def _site(bed: Bed, backend: str, number: int) -> Ours:
    groups = f"[groups.default]\nqueues = {QUEUES if number > QUEUES else 1}\n"
    backends = "".join(backend.format(number=one) for one in range(number))
    return Ours(bed, settings=_LOG + groups + backends, backends=number, reports=86400.0)


def _cost(ours: Ours, requests: list[Publish]) -> float:
    """CPU milliseconds of workers, PostgreSQL and Redis for one share."""
    return ours.side.batch(requests).total_ms
