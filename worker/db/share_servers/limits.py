"""Limits of one share server: one rule, used in Python and in SQL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Limits:
    """Greatest number of shares, and of their GiB, on one server; 0 is no limit."""

    shares: int = 0
    gib: int = 0

    def admit(self, size: int, *, shares: int, gib: int) -> bool:
        """Tell whether a share of ``size`` GiB has room on a server with these shares and GiB."""
        return bool(has_room(size, shares, gib, self.shares, self.gib))


def has_room(size: Any, shares: Any, gib: Any, most: Any, most_gib: Any) -> Any:
    """Apply the rule of :class:`Limits` to numbers, or to columns and parameters."""
    # A share larger than the limit still gets a server to itself.
    fits = (most_gib == 0) | (gib + size <= most_gib) | (shares == 0)
    return ((most == 0) | (shares < most)) & fits
