"""Weighers: pure functions that say how good a pool is for a share, from 0 to 1.

Those that look at a pool's numbers alone give the order in which a snapshot keeps its pools;
those that look at what is asked for weigh a whole offer, or a whole backend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from scheduler.placement.filters import PlacementRequest
from scheduler.placement.pools import Pool, PoolSpec
from worker.model import NetworkKind


def free_capacity(pool: Pool) -> float:
    """The larger the part that is not promised yet, the better."""
    return max(0.0, 1.0 - pool.allocated_gib / pool.promisable_gib) if pool.promisable_gib else 0.0


def fewest_shares(pool: Pool) -> float:
    """The fewer shares there are, the better."""
    return 1.0 / (1.0 + pool.shares)


POOL_WEIGHERS: Final[tuple[tuple[Callable[[Pool], float], float], ...]] = (
    (free_capacity, 1.0),
    (fewest_shares, 1.0),
)
"""Each with its multiplier."""


def preference(pool: Pool) -> float:
    """How good a pool is, whatever is asked for."""
    return sum(multiplier * weigh(pool) for weigh, multiplier in POOL_WEIGHERS)


def uses_network(wanted: PlacementRequest, offer: PoolSpec) -> float:
    """A request that names a share network means it: ``single_svm`` would ignore it."""
    named = wanted.network_kind not in {None, NetworkKind.NONE}
    return 1.0 if offer.mode.has_share_servers == named else 0.0


OFFER_WEIGHERS: Final[tuple[tuple[Callable[[PlacementRequest, PoolSpec], float], float], ...]] = (
    (uses_network, 10.0),
)
"""Each with its multiplier."""


def serves_network(wanted: PlacementRequest, backend: str) -> float:
    """Where a share server of the share network stands, no further one has to be built."""
    return 1.0 if backend in wanted.serving else 0.0


BACKEND_WEIGHERS: Final[tuple[tuple[Callable[[PlacementRequest, str], float], float], ...]] = (
    (serves_network, 1.5),
)
"""Each with its multiplier. A server outweighs any number of shares, and half a pool of room."""


def suitability(wanted: PlacementRequest, offer: PoolSpec) -> float:
    """How good every pool of an offer is for what is asked for, beside its own preference."""
    return sum(multiplier * weigh(wanted, offer) for weigh, multiplier in OFFER_WEIGHERS)


def affinity(wanted: PlacementRequest, backend: str) -> float:
    """How good every pool of a backend is for what is asked for, beside its offer."""
    return sum(multiplier * weigh(wanted, backend) for weigh, multiplier in BACKEND_WEIGHERS)
