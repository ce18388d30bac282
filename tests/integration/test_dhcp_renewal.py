"""A share server's DHCP lease over its whole life, with a real dnsmasq and real workers."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Row, insert, select, update

from tests.support import leftovers
from tests.support.deployment import Deployment
from tests.support.dnsmasq import ENDPOINT, RELAY, Dnsmasq
from tests.support.pace import limit
from tests.support.services import RedisServer, wait_until
from worker.db.core.engine import db_now, engine_for, reading, transaction
from worker.db.networks import dhcp_leases as leases
from worker.db.networks.dhcp_leases import DatabaseLeaseStore
from worker.db.tables.all import metadata
from worker.db.tables.main import counters, share_servers
from worker.db.tables.networks import dhcp_leases
from worker.errors import NotReady

RENEW_AFTER = 3
"""Seconds, as the DHCP server says; dnsmasq's leases last at least two minutes."""
BACKEND = f"""
[backends.dhcp]
mode = "flat_multi_svm"
share_driver = "fake"
compute_helper = "fake"
network_helpers = ["flat_network"]
share_network_addresses = true
[backends.dhcp.network.flat_network]
dhcp_relay_address = "{RELAY}"
dhcp_deadline = 1.5
"""


@pytest.fixture
def dnsmasq(tmp_path: Path) -> Iterator[Dnsmasq]:
    with Dnsmasq(tmp_path, f"swdi{os.getpid()}") as made:
        yield made.start(100, 103, "--no-ping", f"--dhcp-option=option:T1,{RENEW_AFTER}")


@pytest.fixture
def site(
    tmp_path: Path, postgres_url: str, redis_server: RedisServer, dnsmasq: Dnsmasq
) -> Iterator[Deployment]:
    settings = f'{BACKEND}dhcp_namespace = "{dnsmasq.relay_namespace}"\n'
    made = Deployment(tmp_path, postgres_url, redis_server, settings)
    try:
        yield made.start()
    finally:
        made.close()


def one(site: Deployment, table: Any) -> Row[Any]:
    with reading(site.engine) as connection:
        return connection.execute(select(table)).one()


def renewals(site: Deployment, outcome: str) -> int:
    with reading(site.engine) as connection:
        value = connection.execute(
            select(counters.c.value).where(counters.c.name == f"dhcp_renewals_total:{outcome}")
        ).scalar()
    return value or 0


def test_taken_renewed_by_whichever_worker_is_there_and_released(
    site: Deployment, dnsmasq: Dnsmasq
) -> None:
    network = site.ask("create_share_network", dhcp_endpoint=ENDPOINT)
    share = site.ask("create_share", size=1, share_network_id=network["id"])
    lease = one(site, dhcp_leases)
    server = one(site, share_servers)
    assert server.network_info["addresses"] == [lease.address]
    assert server.network_info["mac_addresses"] == [lease.mac]
    assert dnsmasq.leases() == {lease.address: lease.mac}

    moments = _acknowledgements(dnsmasq, lease.address, 3)
    wait_until(lambda: one(site, dhcp_leases).renewing_until == 0, "nobody is at it")
    site.processes["worker-0"].kill()
    site.worker("worker-1")
    moments += _acknowledgements(dnsmasq, lease.address, 3 + 2)
    assert not site.processes["worker-0"].running
    pauses = [later - sooner for sooner, later in itertools.pairwise(moments)]
    print("renewed after", [f"{pause:.1f}" for pause in pauses], "s")
    assert all(pause > RENEW_AFTER - 1 for pause in pauses)
    assert min(pauses) < RENEW_AFTER + 3
    assert dnsmasq.said("DISCOVER", lease.address) == 0
    assert one(site, share_servers).error is None
    wait_until(lambda: renewals(site, "renewed") >= 3, "the renewals are counted")

    site.ask("delete_share", share_id=share["id"])
    wait_until(lambda: not leftovers.table_counts(site.engine)["share_servers"], "it is cleaned up")
    site.ask("delete_share_network", share_network_id=network["id"])
    wait_until(lambda: not list(leftovers.of_tables(site.engine)), "nothing is left")
    assert dnsmasq.leases() == {}
    assert dnsmasq.said("RELEASE", lease.address) == 1
    said = dnsmasq.log().count(lease.mac)
    time.sleep(RENEW_AFTER + 2)
    assert dnsmasq.log().count(lease.mac) == said, "renewed after its share server was deleted"


def _acknowledgements(dnsmasq: Dnsmasq, address: str, count: int) -> list[float]:
    """When each acknowledgement came, up to so many since the server was started."""
    moments = []
    while (seen := dnsmasq.said("ACK", address)) < count:
        wait_until(
            lambda seen=seen: dnsmasq.said("ACK", address) > seen,  # type: ignore[misc]
            f"{address} is renewed once more",
        )
        moments.append(time.monotonic())
    return moments


def test_a_silent_server_shows_on_the_share_server_and_is_asked_until_it_answers(
    site: Deployment, dnsmasq: Dnsmasq
) -> None:
    network = site.ask("create_share_network", dhcp_endpoint=ENDPOINT)
    site.ask("create_share", size=1, share_network_id=network["id"])
    dnsmasq.stop()
    wait_until(lambda: one(site, share_servers).error is not None, "the server shows it")
    assert one(site, share_servers).error["code"] == "backend_unavailable"
    shown = site.ask("show_share_server", share_server_id=one(site, share_servers).id)
    assert "10.66.0.1:67" in shown["error"]["message"]
    assert one(site, dhcp_leases).renew_at > time.time() + 30, "half of what is left"

    _let_it_run_out(site)
    wait_until(lambda: renewals(site, "expired") > 0, "it is counted as run out")
    dnsmasq.start(100, 103, "--no-ping", f"--dhcp-option=option:T1,{RENEW_AFTER}", forget=False)
    _make_due(site)
    wait_until(lambda: one(site, share_servers).error is None, "the share server is well again")
    assert one(site, dhcp_leases).expires_at > time.time() + 60


def _make_due(site: Deployment) -> None:
    with transaction(site.engine) as connection:
        connection.execute(update(dhcp_leases).values(renew_at=db_now() - 1))


def _let_it_run_out(site: Deployment) -> None:
    with transaction(site.engine) as connection:
        connection.execute(
            update(dhcp_leases).values(renew_at=db_now() - 1, expires_at=db_now() - 1)
        )


def test_exhausted_is_an_error_of_the_request(site: Deployment, dnsmasq: Dnsmasq) -> None:
    dnsmasq.start(100, 100, "--no-ping")
    for project, state in (("p1", "available"), ("p2", "error")):
        network = site.ask("create_share_network", project=project, dhcp_endpoint=ENDPOINT)
        operation = site.client.submit(
            "create_share", site.payload(project, size=1, share_network_id=network["id"])
        )
        if state == "available":
            site.client.result(operation, timeout=limit())
            continue
        with pytest.raises(Exception, match="addresses_exhausted"):
            site.client.result(operation, timeout=limit())
    assert site.settle().keys() == {"succeeded", "failed"}
    assert list(dnsmasq.leases()) == [one(site, dhcp_leases).address]
    with reading(site.engine) as connection:
        states = connection.execute(
            select(share_servers.c.status).order_by(share_servers.c.created_at)
        )
        assert list(states.scalars()) == ["active", "error"]


@pytest.fixture
def rows(database_url: str) -> Iterator[Connection]:
    """A share server with a lease that is due, and a due lease of one that is no more."""
    engine = engine_for(database_url)
    metadata.create_all(engine)
    with transaction(engine) as connection:
        connection.execute(
            insert(share_servers).values(
                id="used",
                project_id="p1",
                share_network_id="network",
                backend="dhcp",
                status="active",
                builder_id="o1",
                created_at=db_now(),
                updated_at=db_now(),
            )
        )
        for number, server in enumerate(("used", "gone")):
            connection.execute(
                insert(dhcp_leases).values(
                    share_server_id=server,
                    ordinal=0,
                    endpoint="10.66.0.1:67",
                    address=f"10.77.0.{number}",
                    mac="02:00:00:00:00:00",
                    dhcp_server="10.66.0.1",
                    renew_at=db_now() - 1,
                    expires_at=db_now() + 60,
                )
            )
        yield connection


def test_one_reconciler_asks_and_one_worker_claims(rows: Connection) -> None:
    assert leases.ask(rows, again_after=60, limit=10) == {"dhcp": ["used"]}
    assert leases.ask(rows, again_after=60, limit=10) == {}
    assert leases.claim(rows, "used", 60)
    assert not leases.claim(rows, "used", 60)
    leases.renewed(rows, "used")
    assert leases.claim(rows, "used", 60), "its next time had come"


def test_a_failed_renewal_waits_for_half_of_what_is_left(rows: Connection) -> None:
    for left, pause, expired in ((60, 30, False), (12, 10, False), (-1, 600, True)):
        rows.execute(update(dhcp_leases).values(renew_at=db_now() - 1, expires_at=db_now() + left))
        assert leases.claim(rows, "used", 60)
        assert leases.not_renewed(rows, "used", pause_when_expired=600) is expired
        assert not leases.claim(rows, "used", 60)
        waits = rows.execute(
            select(dhcp_leases.c.renew_at - db_now()).where(dhcp_leases.c.share_server_id == "used")
        ).scalar_one()
        assert waits == pytest.approx(pause, abs=1)


def test_nobody_renews_what_is_being_released(rows: Connection) -> None:
    rows.execute(update(dhcp_leases).values(closing=True))
    assert leases.ask(rows, again_after=60, limit=10) == {}
    assert not leases.claim(rows, "used", 60)


def test_nobody_releases_what_is_being_renewed(rows: Connection, database_url: str) -> None:
    assert leases.claim(rows, "used", 60)
    rows.commit()
    store = DatabaseLeaseStore(database_url)
    with pytest.raises(NotReady):
        store.close("used")
    with transaction(engine_for(database_url)) as connection:
        leases.renewed(connection, "used")
        assert not leases.claim(connection, "used", 60), "it is being released"
    assert [lease.address for lease in store.close("used")] == ["10.77.0.0"]


def test_leases_without_a_server_are_forgotten_when_they_ran_out(rows: Connection) -> None:
    assert leases.forget_orphans(rows) == 0
    rows.execute(update(dhcp_leases).values(expires_at=db_now() - 1))
    assert leases.forget_orphans(rows) == 1
    assert rows.execute(select(dhcp_leases.c.share_server_id)).scalars().all() == ["used"]
