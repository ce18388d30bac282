"""Which share networks a backend takes, and which of its network helpers serves them.

Placement, the share manager and the table in docs/explanation/placement.md all ask here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Generic, Protocol, TypeVar

from worker.model import DriverMode, NetworkKind

_IDS: Final = frozenset({NetworkKind.NEUTRON, NetworkKind.NOVA})
"""Kinds whose ids a flat backend ignores: it has addresses of its own."""
_ADDRESSES: Final = frozenset({NetworkKind.FLAT_POOL, NetworkKind.DHCP})
"""Kinds that bring addresses, which a flat backend may be told to use."""


class Serving(Protocol):
    """What a network helper says of itself."""

    @property
    def kinds(self) -> frozenset[NetworkKind]:
        """Kinds that it serves from the share network's own options."""

    @property
    def has_own_addresses(self) -> bool:
        """Whether the backend's options give it addresses, whatever the share network says."""


class Use(StrEnum):
    """What becomes of a share network on a backend."""

    USED = "used"
    """Its own options decide."""
    IGNORED = "taken, ignored"
    """It is accepted, and its own options are not looked at."""
    REFUSED = "refused"
    """Placement passes the backend over."""


_H = TypeVar("_H", bound=Serving)


@dataclass(frozen=True, slots=True)
class Service(Generic[_H]):
    """What becomes of a kind, and by which network helper (None: by none)."""

    use: Use
    helper: _H | None = None


def service(
    mode: DriverMode,
    helpers: Sequence[_H],
    kind: NetworkKind,
    *,
    share_network_addresses: bool,
) -> Service[_H]:
    """Say what becomes of share networks of a kind on a backend.

    ``single_svm`` ignores every kind. ``managed_multi_svm`` serves what its helpers serve.
    ``flat_multi_svm`` ignores Neutron's and nova-network's ids and gives out addresses of its
    own; share networks that bring addresses are served where ``share_network_addresses`` says so.
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
    """From the backend's own addresses: of the kind's own helper before another's."""
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
