"""Placement: filter, weigh, best first. Pure functions over frozen values."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from scheduler.filters import OFFER_FILTERS, POOL_FILTERS, Wanted
from scheduler.pools import Offer, Pool
from scheduler.snapshot import Ranked, Snapshot
from scheduler.weighers import suitability
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
    fitting = [
        _of_offer(wanted, offer, ranked)
        for offer, ranked in snapshot.ranked()
        if refusal_of_offer(wanted, offer) is None
    ]
    return (pool for _, _, pool in heapq.merge(*fitting))


def _of_offer(wanted: Wanted, offer: Offer, ranked: list[Ranked]) -> Iterator[Ranked]:
    better = suitability(wanted, offer)
    for rank, key, pool in ranked:
        if refusal(wanted, pool) is None:
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
