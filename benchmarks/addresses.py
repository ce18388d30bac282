"""What one address costs, by how many are taken: CPU of the taker and of PostgreSQL.

Each filling is a database of its own; a round takes addresses for new share servers and keeps
them. The rows that are there before are written as the address book would have.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from functools import partial

from netaddr import IPAddress, IPNetwork
from sqlalchemy import insert

from benchmarks.bed import Bed, Figures, cpu_seconds, median, own_cpu, ratio, take_turns, tidy
from worker.db.core.engine import engine_for, transaction
from worker.db.networks.addresses import DatabaseAddressStore, _hex, _Taking
from worker.db.schema import upgrade
from worker.db.tables.main import address_cursors, addresses

FILLINGS = (100, 6_000, 60_000)
BOTTOM = 100
AT_ONCE = 5_000
"""Rows of one insert while a database is filled."""
DOMAIN = "flat:bench"


@dataclass(frozen=True, slots=True)
class Filled:
    """A flat network of which so many addresses are taken."""

    store: DatabaseAddressStore
    ranges: tuple[tuple[int, int], ...]
    ip_version: int

    def take(self, count: int = 1) -> tuple[str, ...]:
        """Addresses for a new share server."""
        server = str(uuid.uuid4())
        return self.store.take(DOMAIN, self.ranges, self.ip_version, server, count)


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
            str(taken): partial(
                _cost, _filled(bed, urls[kind](), "10.0.0.0/16", taken), takes, servers
            )
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
        DatabaseAddressStore(url, rest=720.0),
        ((network.first + 1, network.last - 1),),
        network.version,
    )
    _write_taken(url, filled, taken)
    tidy(url)
    following = network[taken + 1]
    # Else the book did not take what was written for its own, and an empty one is measured.
    assert filled.take() == (str(following),), f"the first free address is not {following}"
    return filled


def _write_taken(url: str, filled: Filled, taken: int) -> None:
    """The rows that as many takes by one share server each would have left."""
    taking = _Taking(DOMAIN, filled.ranges, filled.ip_version, "", 0)
    numbers = range(filled.ranges[0][0], filled.ranges[0][0] + taken)
    rows = [
        {
            "domain": DOMAIN,
            "number": _hex(number),
            "address": str(IPAddress(number, 4 if filled.ip_version == 4 else 6)),
            "share_server_id": str(uuid.uuid4()),
            "ordinal": 0,
            "rests_until": 0.0,
        }
        for number in numbers
    ]
    with transaction(engine_for(url)) as connection:
        for first in range(0, len(rows), AT_ONCE):
            connection.execute(insert(addresses), rows[first : first + AT_ONCE])
        connection.execute(
            insert(address_cursors).values(
                domain=DOMAIN, ranges=taking.digest, last_number=_hex(numbers[-1])
            )
        )


def _cost(filled: Filled, takes: int, servers: list[int]) -> float:
    """CPU milliseconds of one take, the mean of many: a batch of new rows is shared by 64."""
    before = cpu_seconds(servers)
    mine = own_cpu(lambda: [filled.take() for _ in range(takes)])
    return (mine + cpu_seconds(servers) - before) / takes * 1000.0
