"""A share made and deleted on the fakes, against bare Celery's chain of three steps.

``raw_chain`` is three messages, published by the producer. ``raw_chain.with_intake`` has a fourth,
to a process that publishes the chain, as a request to our scheduler does; the ratios are
to the former, those that end in ``_to_intake`` to the latter.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.bed import Bed, Figures, Scale, median, ratio
from benchmarks.sides import Cost, Ours, Publish, Raw


@dataclass(frozen=True, slots=True)
class Round:
    """One round of everything; latencies are the round's medians, in ms."""

    costs: dict[str, Cost]
    latency: dict[str, float]


def run(bed: Bed) -> Figures:
    """Measure what a share costs and how long it takes."""
    raw, ours = Raw(bed), Ours(bed)
    # Its first share stays, so that the server outlives the deletions.
    [network] = ours.networks(1)
    ours.side.batch(ours.shares(1, share_network_id=network))
    _round(raw, ours, network, Scale(full=False))
    rounds = [_round(raw, ours, network, bed.scale) for _ in range(bed.scale.rounds)]
    figures: Figures = {}
    for name in rounds[0].costs:
        figures |= _figures(name, [one.costs[name] for one in rounds])
    for name in rounds[0].latency:
        figures[f"{name}.latency_ms"] = median(one.latency[name] for one in rounds)
    for name in ("create_share", "delete_share"):
        for base, tail in (("raw_chain", ""), ("raw_chain.with_intake", "_to_intake")):
            mine = [one.costs[name] for one in rounds]
            bare = [one.costs[base] for one in rounds]
            figures[f"{name}.worker_cpu_ratio{tail}"] = ratio(
                (cost.worker_ms for cost in mine), (cost.worker_ms for cost in bare)
            )
            figures[f"{name}.total_cpu_ratio{tail}"] = ratio(
                (cost.total_ms for cost in mine), (cost.total_ms for cost in bare)
            )
            figures[f"{name}.latency_ratio{tail}"] = ratio(
                (one.latency[name] for one in rounds), (one.latency[base] for one in rounds)
            )
    return figures


def _round(raw: Raw, ours: Ours, network: str, scale: Scale) -> Round:
    many, some, few = scale.pick(2_000, 60), scale.pick(50, 15), scale.pick(30, 8)
    networks = ours.networks(some)
    costs = {
        "raw_chain": raw.side.batch([raw.publish] * many),
        "create_share": ours.side.batch(ours.shares(many, share_network_id=network)),
        "raw_chain.with_intake": raw.side.batch([raw.publish_by_intake] * many),
    }
    costs["delete_share"] = ours.side.batch(ours.deletions(costs["create_share"].results))
    first: list[Publish] = [
        request for one in networks for request in ours.shares(1, share_network_id=one)
    ]
    costs["create_share.first_on_network"] = ours.side.batch(first)
    costs["create_share.single_svm"] = ours.side.batch(ours.shares(some))
    single = costs["create_share.single_svm"].results
    latency = {
        "raw_chain": median(raw.side.latencies([raw.publish] * few)),
        "create_share": median(ours.side.latencies(ours.shares(few, share_network_id=network))),
        "raw_chain.with_intake": median(raw.side.latencies([raw.publish_by_intake] * few)),
        "delete_share": median(ours.side.latencies(ours.deletions(single[:few]))),
    }
    ours.side.batch(ours.deletions(single[few:]))
    return Round(costs, latency)


def _figures(name: str, rounds: list[Cost]) -> Figures:
    return {
        f"{name}.worker_cpu_ms": median(cost.worker_ms for cost in rounds),
        f"{name}.postgresql_cpu_ms": median(cost.database_ms for cost in rounds),
        f"{name}.redis_cpu_ms": median(cost.broker_ms for cost in rounds),
        f"{name}.total_cpu_ms": median(cost.total_ms for cost in rounds),
        f"{name}.per_second": median(cost.per_second for cost in rounds),
    }
