"""What one address costs, by how many are taken: CPU of the taker and of PostgreSQL.

Each filling is a database of its own, filled through the address book itself; a round takes
addresses for new share servers and keeps them.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from functools import partial

from netaddr import IPNetwork

from benchmarks.bed import Bed, Figures, cpu_seconds, median, own_cpu, ratio, take_turns
from worker.db.addresses import DatabaseAddressBook
from worker.db.engine import engine_for
from worker.db.schema import upgrade

FILLINGS = (100, 6_000, 60_000)
AT_ONCE = 1_000
"""Addresses that one share server takes while the database is filled."""
BOTTOM = 100


@dataclass(frozen=True, slots=True)
class Filled:
    """A flat network of which so many addresses are taken."""

    book: DatabaseAddressBook
    ranges: tuple[tuple[int, int], ...]
    ip_version: int

    def take(self, count: int = 1) -> tuple[str, ...]:
        """Addresses for a new share server."""
        server = str(uuid.uuid4())
        return self.book.take("flat:bench", self.ranges, self.ip_version, server, count)


def run(bed: Bed) -> Figures:
    """Measure both kinds of database."""
    postgres = bed.postgres()
    figures: Figures = {}
    takes = bed.scale.pick(250, 100)
    for kind in ("postgresql", "sqlite"):
        urls = {
            "postgresql": lambda: postgres.url(postgres.create_database()),
            "sqlite": lambda: f"sqlite:///{bed.directory() / 'bench.db'}",
        }
        servers = [postgres.pid] if kind == "postgresql" else []
        sides = {
            str(taken): partial(_cost, _filled(bed, urls[kind](), "10.0.0.0/16", taken), takes, servers)
            for taken in FILLINGS
        }
        sides["ipv6"] = partial(
            _cost, _filled(bed, urls[kind](), "2001:db8::/64", BOTTOM), takes, servers
        )
        costs = take_turns(bed.scale.rounds, sides)
        figures |= {f"addresses.{kind}.cpu_ms_at_{name}": median(costs[name]) for name in costs}
        for name in ("6000", "60000", "ipv6"):
            figures[f"addresses.{kind}.ratio_{name}_to_100"] = ratio(costs[name], costs["100"])
    return figures


def _filled(bed: Bed, url: str, cidr: str, taken: int) -> Filled:
    upgrade(url)
    bed.ends_with(lambda: engine_for(url).dispose())
    network = IPNetwork(cidr)
    filled = Filled(
        DatabaseAddressBook(url, rest=720.0),
        ((network.first + 1, network.last - 1),),
        network.version,
    )
    left = taken
    while left:
        left -= len(filled.take(min(left, AT_ONCE)))
    return filled


def _cost(filled: Filled, takes: int, servers: list[int]) -> float:
    """CPU milliseconds of one take, the mean of many: a batch of new rows is shared by 64."""
    before = cpu_seconds(servers)
    mine = own_cpu(lambda: [filled.take() for _ in range(takes)])
    return (mine + cpu_seconds(servers) - before) / takes * 1000.0
