"""What one share server may hold: one rule, for Python and for the database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server may hold; 0 is no limit."""

    shares: int = 0
    gib: int = 0

    def admit(self, size: int, *, shares: int, gib: int) -> bool:
        """Whether a share of ``size`` GiB has room beside what is on a server."""
        return bool(has_room(size, shares, gib, self.shares, self.gib))


def has_room(size: Any, shares: Any, gib: Any, most: Any, most_gib: Any) -> Any:
    """The one rule of :class:`Limits`, over numbers or over columns and parameters."""
    # A share larger than the limit still gets a server to itself.
    fits = (most_gib == 0) | (gib + size <= most_gib) | (shares == 0)
    return ((most == 0) | (shares < most)) & fits
