"""Choose a pool: filter, weigh, best first. Pure functions over frozen values.

An offer is a :class:`~scheduler.placement.pools.PoolSpec`, which many pools may share.
"""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterable, Iterator

from scheduler.placement.filters import OFFER_FILTERS, POOL_FILTERS, PlacementRequest
from scheduler.placement.pool_cache import PoolTable, Ranked
from scheduler.placement.pools import Pool, PoolSpec
from scheduler.placement.weighers import affinity, suitability
from worker.errors import NoCapacity


def refusal_of_offer(wanted: PlacementRequest, offer: PoolSpec) -> str | None:
    """Return the reason why no pool of an offer can take the share, or None if one might."""
    for test in OFFER_FILTERS:
        reason = test(wanted, offer)
        if reason is not None:
            return reason
    return None


def refusal(wanted: PlacementRequest, pool: Pool) -> str | None:
    """Return the reason why a pool cannot take the share, or None if it can.

    Its offer has passed :func:`refusal_of_offer`.
    """
    for test in POOL_FILTERS:
        reason = test(wanted, pool)
        if reason is not None:
            return reason
    return None


def candidates(wanted: PlacementRequest, pool_table: PoolTable) -> Iterator[Pool]:
    """Yield the pools that can take the share, best first; each is checked only when reached."""
    fitting = {
        offer: ranked
        for offer, ranked in pool_table.ranked()
        if refusal_of_offer(wanted, offer) is None
    }
    others = [_weighed(wanted, offer, ranked) for offer, ranked in fitting.items()]
    preferred = sorted(_with_affinity(wanted, fitting, pool_table))
    return (pool for _, _, pool in heapq.merge(preferred, *others))


def _weighed(
    wanted: PlacementRequest, offer: PoolSpec, ranked: Iterable[Ranked]
) -> Iterator[Ranked]:
    """Yield an offer's pools in their order, without those of :func:`_with_affinity`."""
    better = suitability(wanted, offer)
    for rank, key, pool in ranked:
        if pool.backend not in wanted.serving and refusal(wanted, pool) is None:
            yield rank - better, key, pool


def _with_affinity(
    wanted: PlacementRequest, fitting: Container[PoolSpec], pool_table: PoolTable
) -> Iterator[Ranked]:
    """Yield the pools of backends with a share server that has room for the share."""
    for backend in wanted.serving:
        for rank, key, pool in pool_table.of_backend(backend):
            if pool.offer in fitting and refusal(wanted, pool) is None:
                better = suitability(wanted, pool.offer) + affinity(wanted, backend)
                yield rank - better, key, pool


def refusals(wanted: PlacementRequest, pool_table: PoolTable) -> dict[str, str]:
    """Return the reason why each pool cannot take the share, without pools that can."""
    reasons = {
        pool.key: refusal_of_offer(wanted, pool.offer) or refusal(wanted, pool)
        for pool in pool_table
    }
    return {key: reason for key, reason in reasons.items() if reason is not None}


def no_capacity(wanted: PlacementRequest, refusals: dict[str, str]) -> NoCapacity:
    """Return the error for the producer, with the reasons of up to ten pools."""
    shown = "; ".join(f"{key}: {reason}" for key, reason in sorted(refusals.items())[:10])
    more = f" (and {len(refusals) - 10} more)" if len(refusals) > 10 else ""  # noqa: PLR2004 - as the docstring says
    why = f" {shown}{more}." if refusals else " No backend has reported a storage pool yet."
    return NoCapacity(
        f"No backend can take a share of {wanted.size} GiB over {wanted.share_proto}.{why}",
        refusals=refusals,
    )
