"""Weighers: pure functions that say how good a pool is for a share, from 0 to 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from scheduler.filters import Wanted
from scheduler.pools import Pool
from worker.model import NetworkKind

Weigher = Callable[[Wanted, Pool], float]


def uses_network(wanted: Wanted, pool: Pool) -> float:
    """A request that names a share network means it: ``single_svm`` would ignore it."""
    named = wanted.network_kind not in {None, NetworkKind.NONE}
    return 1.0 if pool.mode.has_share_servers == named else 0.0


def free_capacity(wanted: Wanted, pool: Pool) -> float:
    """The larger the part that is still free, the better."""
    total = pool.total_gib * wanted.over_subscription
    return max(0.0, 1.0 - pool.allocated_gib / total) if total else 0.0


def fewest_shares(_wanted: Wanted, pool: Pool) -> float:
    """The fewer shares there are, the better."""
    return 1.0 / (1.0 + pool.shares)


WEIGHERS: Final[tuple[tuple[Weigher, float], ...]] = (
    (uses_network, 10.0),
    (free_capacity, 1.0),
    (fewest_shares, 1.0),
)
"""Each with its multiplier."""
