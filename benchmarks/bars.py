"""The limits that `make bench` judges its figures by, under the names of the figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Bar:
    """A limit; ``times`` names the figure of the same run that it is a multiple of, if one."""

    limit: float
    at_least: bool = False
    times: str | None = None

    @property
    def text(self) -> str:
        """As the table shows it."""
        sign = ">=" if self.at_least else "<="
        return f"{sign} {self.limit:g}" + (f" x {self.times}" if self.times else "")

    def is_met(self, value: float, figures: Mapping[str, float]) -> bool:
        """Whether a value keeps to it."""
        limit = self.limit * (figures[self.times] if self.times else 1.0)
        return value >= limit if self.at_least else value <= limit


BARS: Final[Mapping[str, Bar]] = {
    "create_share.worker_cpu_ratio": Bar(1.8),
    "create_share.total_cpu_ratio": Bar(2.0),
    "create_share.latency_ratio": Bar(2.5),
    "delete_share.worker_cpu_ratio": Bar(1.8),
    "scaling.ratio_4_to_1": Bar(0.9, at_least=True, times="scaling.raw_ratio_4_to_1"),
    "scaling.ratio_4_to_2": Bar(0.95, at_least=True),
    "backends_4000.cost_ratio": Bar(1.3),
    "placement.ms_at_10000": Bar(5.0),
    "addresses.postgresql.ratio_60000_to_100": Bar(1.5),
    "addresses.sqlite.ratio_60000_to_100": Bar(1.5),
    "reconciler.ratio_100000_to_10": Bar(1.3),
    "listing.page_ms_at_100000": Bar(20.0),
    "memory.idle_pss_mib": Bar(250.0),
    "cli.help_ms": Bar(150.0),
    "up.ready_s": Bar(3.0),
}
