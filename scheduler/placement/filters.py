"""Filters: pure functions that return why a pool cannot take a share, or None if it can."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from scheduler.placement.pools import Pool, PoolSpec
from scheduler.placement.share_network import NETWORK_SPEC
from worker.model import DriverMode, NetworkKind

BACKEND_NAME_SPEC: Final = "share_backend_name"
MODE_SPEC: Final = "driver_mode"
_NO_CAPABILITY: Final = frozenset({MODE_SPEC, NETWORK_SPEC, BACKEND_NAME_SPEC})


@dataclass(frozen=True, slots=True)
class PlacementRequest:
    """Requirements of a share on its pool. ``size`` is whole GiB, ``report_expiry`` seconds."""

    size: int
    share_proto: str
    network_kind: NetworkKind | None
    """Kind of the share network; None when the share has none."""
    extra_specs: Mapping[str, str]
    report_expiry: float
    only: tuple[str, str] | None = None
    """Names of the one backend and pool allowed: a copy of a snapshot is created beside it."""
    serving: frozenset[str] = frozenset()
    """Names of backends with a share server that has room for the share."""
    now: float = 0.0
    """Time of the request, on the same clock as the pools' ``reported_at``; placement sets it."""


PoolSpecFilter = Callable[[PlacementRequest, PoolSpec], str | None]
PoolFilter = Callable[[PlacementRequest, Pool], str | None]


def is_enabled(_wanted: PlacementRequest, offer: PoolSpec) -> str | None:
    """Refuse a backend that an administrator has disabled."""
    return None if offer.enabled else "the backend is disabled"


def is_up(wanted: PlacementRequest, pool: Pool) -> str | None:
    """Refuse a backend whose last report is too old."""
    age = wanted.now - pool.reported_at
    if age <= wanted.report_expiry:
        return None
    return f"the backend is down: its last report is {age:.0f} s old"


def is_listed(_wanted: PlacementRequest, pool: Pool) -> str | None:
    """Refuse a pool that its backend no longer reports; its row stays while shares are on it."""
    return None if pool.is_listed else "its backend no longer reports the pool"


def is_there(wanted: PlacementRequest, pool: Pool) -> str | None:
    """Refuse every pool but the one that the share must be on."""
    if wanted.only is None or (pool.backend, pool.name) == wanted.only:
        return None
    return f"the snapshot is on {'#'.join(wanted.only)}"


def has_mode(wanted: PlacementRequest, offer: PoolSpec) -> str | None:
    """Refuse another driver mode than the share type's, or one that needs a share network."""
    asked = wanted.extra_specs.get(MODE_SPEC)
    if asked is not None and asked != offer.mode:
        return f"its mode is {offer.mode}, and the share type asks for {asked}"
    if wanted.network_kind in {None, NetworkKind.NONE} and offer.mode.has_share_servers:
        return f"its mode is {offer.mode}, which needs addresses: name a share_network_id"
    return None


def has_network_kind(wanted: PlacementRequest, offer: PoolSpec) -> str | None:
    """Refuse a backend that does not serve the kind of the share network."""
    kind = wanted.network_kind
    if kind is None or offer.mode is DriverMode.SINGLE_SVM or kind in offer.network_kinds:
        return None
    return f"it serves no share networks of kind {kind}"


def has_protocol(wanted: PlacementRequest, offer: PoolSpec) -> str | None:
    """Refuse a backend without the share's protocol."""
    return None if wanted.share_proto in offer.protocols else f"it has no {wanted.share_proto}"


def has_capabilities(wanted: PlacementRequest, offer: PoolSpec) -> str | None:
    """Refuse a pool with reported capabilities that differ from the extra specs."""
    for name, value in wanted.extra_specs.items():
        if (name, value) not in offer.capabilities and name not in _NO_CAPABILITY:
            has = dict(offer.capabilities).get(name, "none")
            return f"the share type asks for {name}={value}, and it has {has}"
    return None


def is_of_backend(wanted: PlacementRequest, pool: Pool) -> str | None:
    """Refuse every backend but the one that the share type names."""
    asked = wanted.extra_specs.get(BACKEND_NAME_SPEC)
    if asked in {None, pool.backend}:
        return None
    return f"the share type asks for {BACKEND_NAME_SPEC}={asked}, and it has {pool.backend}"


def has_capacity(wanted: PlacementRequest, pool: Pool) -> str | None:
    """Refuse a pool with too little unreserved or too little free capacity."""
    free = min(pool.promisable_gib - pool.allocated_gib, pool.free_gib)
    return None if wanted.size <= free else f"it has {max(free, 0)} GiB free"


OFFER_FILTERS: Final[tuple[PoolSpecFilter, ...]] = (
    is_enabled,
    has_mode,
    has_network_kind,
    has_protocol,
    has_capabilities,
)
POOL_FILTERS: Final[tuple[PoolFilter, ...]] = (
    is_up,
    is_listed,
    is_there,
    is_of_backend,
    has_capacity,
)
