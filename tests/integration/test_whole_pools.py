"""A whole pool taken by sixteen processes at once: each address exactly once, then none."""

from __future__ import annotations

import multiprocessing
from multiprocessing.queues import Queue

import pytest
from netaddr import IPAddress, IPNetwork

from tests.support.pace import limit
from worker.addressing import Pool, parse_pool
from worker.db.core.engine import engine_for
from worker.db.networks.addresses import DatabaseAddressStore
from worker.db.schema import upgrade
from worker.errors import ErrorCode, Fatal

PROCESSES = 16
DOMAIN = "flat:whole"
HOUR = 3600.0
fork = multiprocessing.get_context("fork")


def _take_all(url: str, pool: Pool, name: str, results: Queue[list[str]]) -> None:
    store = DatabaseAddressStore(url, rest=HOUR)
    taken: list[str] = []
    while True:
        server = f"{name}-{len(taken)}"
        try:
            taken += store.take(DOMAIN, pool.ranges, pool.ip_version, server, 1)
        except Fatal as refused:
            assert refused.code is ErrorCode.ADDRESSES_EXHAUSTED  # noqa: PT017 - in a child process
            results.put(taken)
            return


@pytest.mark.parametrize(
    ("cidr", "gateway", "usable"),
    [("10.16.0.0/20", "10.16.0.1", 4093), ("2001:db8::/116", "2001:db8::1", 4094)],
    ids=["ipv4", "ipv6"],
)
def test_a_whole_pool(database_url: str, cidr: str, gateway: str, usable: int) -> None:
    """Network, broadcast (or the routers' anycast address) and gateway are never given out."""
    upgrade(database_url)
    engine_for(database_url).dispose()
    pool = parse_pool([cidr], subnet=None, gateway=gateway)
    results: Queue[list[str]] = fork.Queue()
    children = [
        fork.Process(target=_take_all, args=(database_url, pool, f"p{number}", results))
        for number in range(PROCESSES)
    ]
    for child in children:
        child.start()
    taken = [address for _ in children for address in results.get(timeout=limit())]
    for child in children:
        child.join(limit())
    assert [child.exitcode for child in children] == [0] * PROCESSES
    network = IPNetwork(cidr)
    held_back = {network.network, IPAddress(gateway)}
    if network.version == 4:
        held_back.add(network.broadcast)
    assert len(taken) == len(set(taken)) == usable
    assert {IPAddress(address) for address in taken} == set(network) - held_back
    store = DatabaseAddressStore(database_url, rest=HOUR)
    with pytest.raises(Fatal) as refused:
        store.take(DOMAIN, pool.ranges, pool.ip_version, "one-too-many", 1)
    assert refused.value.code is ErrorCode.ADDRESSES_EXHAUSTED
