"""Placement: filter, weigh, best first. Pure functions over frozen values."""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.filters import FILTERS, Wanted
from scheduler.pools import Pool
from scheduler.weighers import WEIGHERS
from worker.errors import NoCapacity


def refusal(wanted: Wanted, pool: Pool) -> str | None:
    """Why a pool cannot take the share, or None if it can."""
    for test in FILTERS:
        reason = test(wanted, pool)
        if reason is not None:
            return reason
    return None


def weight(wanted: Wanted, pool: Pool) -> float:
    """How good a pool is for the share."""
    return sum(multiplier * weigh(wanted, pool) for weigh, multiplier in WEIGHERS)


def candidates(wanted: Wanted, pools: Sequence[Pool]) -> list[Pool]:
    """Return the pools that can take the share, the best first.

    Raises :class:`~worker.errors.NoCapacity` with the reason of each when there is none.
    """
    refusals: dict[str, str] = {}
    fitting: list[Pool] = []
    for pool in pools:
        reason = refusal(wanted, pool)
        if reason is None:
            fitting.append(pool)
        else:
            refusals[pool.key] = reason
    if not fitting:
        raise no_capacity(wanted, refusals)
    return sorted(fitting, key=lambda pool: (-weight(wanted, pool), pool.key))


def no_capacity(wanted: Wanted, refusals: dict[str, str]) -> NoCapacity:
    """The refusal that a producer sees, with up to ten reasons."""
    shown = "; ".join(f"{key}: {reason}" for key, reason in sorted(refusals.items())[:10])
    more = f" (and {len(refusals) - 10} more)" if len(refusals) > 10 else ""  # noqa: PLR2004 - as the docstring says
    why = f" {shown}{more}." if refusals else " No backend has reported a storage pool yet."
    return NoCapacity(
        f"No backend can take a share of {wanted.size} GiB over {wanted.share_proto}.{why}",
        refusals=refusals,
    )
