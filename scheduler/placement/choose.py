"""Placement: filter, weigh, best first. Pure functions over frozen values."""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterable, Iterator

from scheduler.placement.filters import OFFER_FILTERS, POOL_FILTERS, Wanted
from scheduler.placement.pool_cache import Ranked, Snapshot
from scheduler.placement.pools import Offer, Pool
from scheduler.placement.weighers import nearness, suitability
from worker.errors import NoCapacity


def refusal_of_offer(wanted: Wanted, offer: Offer) -> str | None:
    """Why no pool of an offer can take the share, or None if one might."""
    for test in OFFER_FILTERS:
        reason = test(wanted, offer)
        if reason is not None:
            return reason
    return None


def refusal(wanted: Wanted, pool: Pool) -> str | None:
    """Why a pool of an offer that fits cannot take the share, or None if it can."""
    for test in POOL_FILTERS:
        reason = test(wanted, pool)
        if reason is not None:
            return reason
    return None


def candidates(wanted: Wanted, snapshot: Snapshot) -> Iterator[Pool]:
    """Give the pools that can take the share, the best first; each is looked at when it is due."""
    fitting = {
        offer: ranked
        for offer, ranked in snapshot.ranked()
        if refusal_of_offer(wanted, offer) is None
    }
    far = [_weighed(wanted, offer, ranked) for offer, ranked in fitting.items()]
    near = sorted(_near(wanted, fitting, snapshot))
    return (pool for _, _, pool in heapq.merge(near, *far))


def _weighed(wanted: Wanted, offer: Offer, ranked: Iterable[Ranked]) -> Iterator[Ranked]:
    """The pools of an offer, in their order; not those that :func:`_near` gives."""
    better = suitability(wanted, offer)
    for rank, key, pool in ranked:
        if pool.backend not in wanted.serving and refusal(wanted, pool) is None:
            yield rank - better, key, pool


def _near(wanted: Wanted, fitting: Container[Offer], snapshot: Snapshot) -> Iterator[Ranked]:
    """The pools of the few backends that are nearer than their offer is."""
    for backend in wanted.serving:
        for rank, key, pool in snapshot.of_backend(backend):
            if pool.offer in fitting and refusal(wanted, pool) is None:
                better = suitability(wanted, pool.offer) + nearness(wanted, backend)
                yield rank - better, key, pool


def refusals(wanted: Wanted, snapshot: Snapshot) -> dict[str, str]:
    """Why each pool cannot take the share; those that can are left out."""
    reasons = {
        pool.key: refusal_of_offer(wanted, pool.offer) or refusal(wanted, pool) for pool in snapshot
    }
    return {key: reason for key, reason in reasons.items() if reason is not None}


def no_capacity(wanted: Wanted, refusals: dict[str, str]) -> NoCapacity:
    """The refusal that a producer sees, with up to ten reasons."""
    shown = "; ".join(f"{key}: {reason}" for key, reason in sorted(refusals.items())[:10])
    more = f" (and {len(refusals) - 10} more)" if len(refusals) > 10 else ""  # noqa: PLR2004 - as the docstring says
    why = f" {shown}{more}." if refusals else " No backend has reported a storage pool yet."
    return NoCapacity(
        f"No backend can take a share of {wanted.size} GiB over {wanted.share_proto}.{why}",
        refusals=refusals,
    )
