"""Weighers: pure functions that rate a pool for a share, from 0 to 1, the higher the better.

Those that use only a pool's numbers define the order of the cached pools. Those that depend on the
request rate a whole offer, or a whole backend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from scheduler.placement.filters import PlacementRequest
from scheduler.placement.pools import Pool, PoolSpec
from worker.model import NetworkKind


def free_capacity(pool: Pool) -> float:
    """Rate a pool by the part of its capacity that is not reserved."""
    return max(0.0, 1.0 - pool.allocated_gib / pool.promisable_gib) if pool.promisable_gib else 0.0


def fewest_shares(pool: Pool) -> float:
    """Rate a pool by its number of shares, fewer being better."""
    return 1.0 / (1.0 + pool.shares)


POOL_WEIGHERS: Final[tuple[tuple[Callable[[Pool], float], float], ...]] = (
    (free_capacity, 1.0),
    (fewest_shares, 1.0),
)
"""Each with its multiplier."""


def preference(pool: Pool) -> float:
    """Return the weighted rating of a pool that does not depend on the request."""
    return sum(multiplier * weigh(pool) for weigh, multiplier in POOL_WEIGHERS)


def uses_network(wanted: PlacementRequest, offer: PoolSpec) -> float:
    """Rate an offer 1 if it has share servers exactly when a share network is named."""
    named = wanted.network_kind not in {None, NetworkKind.NONE}
    return 1.0 if offer.mode.has_share_servers == named else 0.0


OFFER_WEIGHERS: Final[tuple[tuple[Callable[[PlacementRequest, PoolSpec], float], float], ...]] = (
    (uses_network, 10.0),
)
"""Each with its multiplier."""


def serves_network(wanted: PlacementRequest, backend: str) -> float:
    """Rate a backend 1 if it has a share server with room, so that none has to be built."""
    return 1.0 if backend in wanted.serving else 0.0


BACKEND_WEIGHERS: Final[tuple[tuple[Callable[[PlacementRequest, str], float], float], ...]] = (
    (serves_network, 1.5),
)
"""Each with its multiplier. A server outweighs any number of shares and half a pool's capacity."""


def suitability(wanted: PlacementRequest, offer: PoolSpec) -> float:
    """Return the weighted rating of an offer for a request, to be added to a pool's preference."""
    return sum(multiplier * weigh(wanted, offer) for weigh, multiplier in OFFER_WEIGHERS)


def affinity(wanted: PlacementRequest, backend: str) -> float:
    """Return the weighted rating of a backend for a request, to be added to its pools' ratings."""
    return sum(multiplier * weigh(wanted, backend) for weigh, multiplier in BACKEND_WEIGHERS)
