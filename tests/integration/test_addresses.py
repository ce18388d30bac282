"""The address book on both databases, with many processes at once."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.queues import Queue

import pytest
from netaddr import IPAddress, IPNetwork
from sqlalchemy import func, select

from tests.support.pace import limit, slowed
from worker.db.core.engine import engine_for, reading
from worker.db.networks.addresses import DatabaseAddressStore
from worker.db.tables.all import metadata
from worker.db.tables.main import addresses
from worker.errors import ErrorCode, Fatal, NotReady

HOUR = 3600.0
DOMAIN = "flat:test"
Ranges = tuple[tuple[int, int], ...]

# A fork is what Celery's prefork pool does, and what the engine must survive.
fork = multiprocessing.get_context("fork")


def ranges(*spans: str) -> Ranges:
    parts = [span.partition("-") for span in spans]
    return tuple((int(IPAddress(low)), int(IPAddress(high or low))) for low, _, high in parts)


@pytest.fixture
def url(database_url: str) -> str:
    metadata.create_all(engine_for(database_url))
    return database_url


@pytest.fixture
def store(url: str) -> DatabaseAddressStore:
    return DatabaseAddressStore(url, rest=HOUR)


def take(
    store: DatabaseAddressStore, spans: Ranges, server: str, count: int = 1
) -> tuple[str, ...]:
    return store.take(DOMAIN, spans, 4, server, count)


def test_taking_again_gives_the_same_and_more_when_asked(store: DatabaseAddressStore) -> None:
    spans = ranges("10.0.0.1-10.0.0.9")
    first = take(store, spans, "a", 2)
    assert first == ("10.0.0.1", "10.0.0.2")
    assert take(store, spans, "b") == ("10.0.0.3",)
    assert take(store, spans, "a", 2) == first
    assert take(store, spans, "a", 3) == (*first, "10.0.0.4")
    assert take(store, spans, "a", 1) == (*first, "10.0.0.4")
    assert store.held(DOMAIN, "a") == (*first, "10.0.0.4")
    assert store.held("flat:other", "a") == ()


def test_domains_do_not_share_addresses(store: DatabaseAddressStore) -> None:
    spans = ranges("10.0.0.1")
    assert store.take("flat:one", spans, 4, "a", 1) == store.take("flat:two", spans, 4, "b", 1)
    store.release("a")
    assert store.held("flat:one", "a") == ()
    assert store.held("flat:two", "b") == ("10.0.0.1",)


def test_too_few_takes_nothing(store: DatabaseAddressStore) -> None:
    spans = ranges("10.0.0.1-10.0.0.3")
    take(store, spans, "a", 2)
    with pytest.raises(Fatal, match="needs 2 more addresses of flat:test") as refused:
        take(store, spans, "b", 2)
    assert refused.value.code is ErrorCode.ADDRESSES_EXHAUSTED
    assert store.held(DOMAIN, "b") == ()
    assert take(store, spans, "c") == ("10.0.0.3",)


def test_a_released_address_rests(url: str) -> None:
    rest = slowed(0.6)
    store = DatabaseAddressStore(url, rest=rest)
    spans = ranges("10.0.0.1")
    take(store, spans, "a")
    store.release("a")
    store.release("a")
    with pytest.raises(NotReady) as waiting:
        take(store, spans, "b")
    assert 0 < waiting.value.retry_after <= rest
    time.sleep(waiting.value.retry_after + 0.05)
    assert take(store, spans, "b") == ("10.0.0.1",)


def test_a_long_rest_is_exhaustion_and_is_told(store: DatabaseAddressStore) -> None:
    spans = ranges("10.0.0.1-10.0.0.2")
    take(store, spans, "a", 2)
    store.release("a")
    with pytest.raises(Fatal, match="2 released ones still rest") as refused:
        take(store, spans, "b")
    assert refused.value.code is ErrorCode.ADDRESSES_EXHAUSTED


def test_waiting_is_only_for_as_many_as_are_missing(url: str) -> None:
    spans = ranges("10.0.0.1-10.0.0.3")
    brief, long = DatabaseAddressStore(url, rest=20.0), DatabaseAddressStore(url, rest=HOUR)
    for store, server in ((brief, "a"), (long, "b"), (long, "c")):
        take(store, spans, server)
    brief.release("a")
    long.release("b")
    with pytest.raises(NotReady):
        take(long, spans, "d", 1)
    with pytest.raises(Fatal):
        take(long, spans, "d", 2)


def test_never_used_addresses_come_first(url: str) -> None:
    store = DatabaseAddressStore(url, rest=0.0)
    spans = ranges("10.0.0.1-10.0.0.3")
    take(store, spans, "a")
    store.release("a")
    assert [take(store, spans, server)[0] for server in "bcd"] == [
        "10.0.0.2",
        "10.0.0.3",
        "10.0.0.1",
    ]


def test_edited_ranges(url: str) -> None:
    store = DatabaseAddressStore(url, rest=0.0)
    assert take(store, ranges("10.0.0.10-10.0.0.19"), "a", 10)[-1] == "10.0.0.19"
    with pytest.raises(Fatal):
        take(store, ranges("10.0.0.10-10.0.0.19"), "b")
    # Added below and above, and what was free of the old range is no longer given out.
    edited = ranges("10.0.0.2-10.0.0.3", "10.0.0.15-10.0.0.20")
    assert set(take(store, edited, "b", 3)) == {"10.0.0.2", "10.0.0.3", "10.0.0.20"}
    store.release("a")
    assert set(take(store, edited, "c", 5)) == {f"10.0.0.{n}" for n in range(15, 20)}
    with pytest.raises(Fatal):
        take(store, edited, "d")
    # Back again: the rows of the old range are found free.
    assert take(store, ranges("10.0.0.10-10.0.0.19"), "d") == ("10.0.0.10",)


def test_edited_ranges_behind_a_large_used_part(store: DatabaseAddressStore) -> None:
    old = ranges("10.0.0.1-10.0.7.255")
    take(store, old, "a", 2047)
    assert take(store, ranges("10.0.0.1-10.0.8.0"), "b") == ("10.0.8.0",)


def test_ipv6_has_as_many_rows_as_it_needs(store: DatabaseAddressStore, url: str) -> None:
    network = IPNetwork("2001:db8::/64")
    spans = ((network.first + 1, network.last),)
    assert store.take(DOMAIN, spans, 6, "a", 2) == ("2001:db8::1", "2001:db8::2")
    assert store.take(DOMAIN, ((0xFE, 0xFE),), 6, "b", 1) == ("::fe",)
    with reading(engine_for(url)) as connection:
        rows = connection.execute(select(func.count()).select_from(addresses)).scalar_one()
    assert rows <= 65


def _take_until_refused(url: str, spans: Ranges, name: str, results: Queue[list[str]]) -> None:
    store = DatabaseAddressStore(url, rest=HOUR)
    taken: list[str] = []
    try:
        while True:
            taken += take(store, spans, f"{name}-{len(taken)}")
    except Fatal as refused:
        assert refused.code is ErrorCode.ADDRESSES_EXHAUSTED  # noqa: PT017 - in a child process
        results.put(taken)


def test_eight_processes_share_a_24_out_exactly(url: str) -> None:
    spans = ranges("10.0.0.2-10.0.0.254")
    results: Queue[list[str]] = fork.Queue()
    children = [
        fork.Process(target=_take_until_refused, args=(url, spans, f"p{n}", results))
        for n in range(8)
    ]
    for child in children:
        child.start()
    taken = [address for _ in children for address in results.get(timeout=limit())]
    for child in children:
        child.join(limit())
    assert [child.exitcode for child in children] == [0] * 8
    assert sorted(taken, key=IPAddress) == [f"10.0.0.{n}" for n in range(2, 255)]
    with pytest.raises(Fatal):
        take(DatabaseAddressStore(url, rest=HOUR), spans, "late")


def _take_as_one(url: str, spans: Ranges, results: Queue[tuple[str, ...]]) -> None:
    results.put(take(DatabaseAddressStore(url, rest=HOUR), spans, "the-server", 2))


def test_attempts_of_one_server_at_once_hold_one_set(url: str) -> None:
    spans = ranges("10.0.0.1-10.0.0.200")
    results: Queue[tuple[str, ...]] = fork.Queue()
    children = [fork.Process(target=_take_as_one, args=(url, spans, results)) for _ in range(8)]
    for child in children:
        child.start()
    answers = {results.get(timeout=limit()) for _ in children}
    for child in children:
        child.join(limit())
    assert answers == {DatabaseAddressStore(url, rest=HOUR).held(DOMAIN, "the-server")}
    assert len(answers.pop()) == 2
