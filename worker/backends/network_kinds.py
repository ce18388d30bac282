"""Kinds of share network that a backend accepts, and the network helper that serves each.

Used by placement, the share manager and the table in docs/explanation/placement.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Generic, Protocol, TypeVar

from worker.model import DriverMode, NetworkKind

_IDS: Final = frozenset({NetworkKind.NEUTRON, NetworkKind.NOVA})
"""Kinds of which a flat backend ignores the ids, because it has its own addresses."""
_ADDRESSES: Final = frozenset({NetworkKind.FLAT_POOL, NetworkKind.DHCP})
"""Kinds that name addresses; a flat backend may be configured to use them."""


class Serving(Protocol):
    """Properties of a network helper that decide which share networks it serves."""

    @property
    def kinds(self) -> frozenset[NetworkKind]:
        """Kinds that the helper serves from the share network's own options."""

    @property
    def has_own_addresses(self) -> bool:
        """Whether the backend's options provide addresses for any share network."""


class Use(StrEnum):
    """How a backend treats a share network."""

    USED = "used"
    """The backend uses the share network's own options."""
    IGNORED = "taken, ignored"
    """The backend accepts the share network and ignores its options."""
    REFUSED = "refused"
    """Placement skips the backend."""


_H = TypeVar("_H", bound=Serving)


@dataclass(frozen=True, slots=True)
class Service(Generic[_H]):
    """How a backend treats a kind of share network, and the network helper for it, if any."""

    use: Use
    helper: _H | None = None


def service(
    mode: DriverMode,
    helpers: Sequence[_H],
    kind: NetworkKind,
    *,
    share_network_addresses: bool,
) -> Service[_H]:
    """Return how a backend treats share networks of a kind.

    ``single_svm`` ignores every kind. ``managed_multi_svm`` serves the kinds that its network
    helpers serve. ``flat_multi_svm`` ignores Neutron and nova-network ids and allocates its own
    addresses; the addresses named on a share network are used if ``share_network_addresses`` is on.
    """
    if mode is DriverMode.SINGLE_SVM:
        return Service(Use.IGNORED)
    serving = next((helper for helper in helpers if kind in helper.kinds), None)
    if mode is DriverMode.MANAGED_MULTI_SVM:
        used = serving is not None and kind is not NetworkKind.NONE
    else:
        if kind in _IDS:
            return _ignoring(helpers, serving)
        used = serving is not None and kind in _ADDRESSES and share_network_addresses
    return Service(Use.USED, serving) if used else Service(Use.REFUSED)


def _ignoring(helpers: Sequence[_H], serving: _H | None) -> Service[_H]:
    """Use the backend's own addresses, preferably of a helper that serves the kind."""
    own = [helper for helper in helpers if helper.has_own_addresses]
    if serving is not None and serving in own:
        return Service(Use.IGNORED, serving)
    return Service(Use.IGNORED, own[0]) if own else Service(Use.REFUSED)


def served_kinds(
    mode: DriverMode, helpers: Sequence[Serving], *, share_network_addresses: bool
) -> frozenset[NetworkKind]:
    """Return the share network kinds that a backend takes."""
    return frozenset(
        kind
        for kind in NetworkKind
        if service(mode, helpers, kind, share_network_addresses=share_network_addresses).use
        is not Use.REFUSED
    )
