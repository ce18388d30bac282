"""A database that moves to its standby, or falls silent, under many creates."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.engine import make_url

from tests.support.fakes import Fakes
from tests.support.forwarder import Forwarder
from tests.support.services import PostgresServer, RedisServer, free_port, wait_until
from worker.db.core.engine import reading
from worker.db.core.outages import patiently
from worker.db.tables.main import operations

CREATES = 100


class Site(Fakes):
    """A deployment that reaches its database through a forwarder, with a health port."""

    health_port: int

    def ready(self) -> list[str]:
        """What /readyz misses."""
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.health_port}/readyz", timeout=60
            ) as answer:
                document = json.load(answer)
        except urllib.error.HTTPError as error:
            document = json.load(error)
        return list(document["missing"])

    def send(self) -> list[str]:
        """Ask for many shares; the answers are waited for later."""
        asked = self.payload(size=1, share_network_id=self.network())
        sent = [str(uuid.uuid4()) for _ in range(CREATES)]
        for operation_id in sent:
            self.client.send("create_share", asked, operation_id=operation_id)
        return sent

    def check_all_created(self, sent: list[str]) -> None:
        """Every request has its share; otherwise show what became of it."""
        try:
            for operation_id in sent:
                self.client.result(operation_id, timeout=120)
        except BaseException:
            print(patiently()(self.operation_states), self.logs())
            raise
        assert patiently()(self.count_available) == CREATES

    def ended(self) -> int:
        with reading(self.engine) as connection:
            return int(
                connection.execute(
                    select(func.count()).where(operations.c.state == "succeeded")
                ).scalar_one()
            )


@pytest.fixture
def primary() -> Iterator[PostgresServer]:
    server = PostgresServer()
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture
def forwarder(primary: PostgresServer) -> Iterator[Forwarder]:
    with Forwarder(primary.port) as forwarder:
        yield forwarder


@pytest.fixture
def site(
    tmp_path: Path, primary: PostgresServer, forwarder: Forwarder, redis_server: RedisServer
) -> Iterator[Site]:
    port = free_port()
    url = make_url(primary.url()).set(port=forwarder.port).render_as_string(hide_password=False)
    made = Site(tmp_path, url, redis_server, engine={"lease": 5.0})
    made.health_port = port
    with made.config_path.open("a") as config:
        config.write(f"\n[health]\nport = {port}\n")
    try:
        made.start(workers=2)
        made.role("health")
        wait_until(lambda: reached(made), "the health port answers")
        wait_until(lambda: made.ready() == [], "the service is ready")
        yield made
    except BaseException:
        print(made.logs())
        raise
    finally:
        made.close()


def reached(site: Site) -> bool:
    with contextlib.suppress(OSError):
        site.ready()
        return True
    return False


def test_a_promoted_standby_takes_over(
    site: Site, primary: PostgresServer, forwarder: Forwarder
) -> None:
    standby = primary.start_standby()
    try:
        sent = site.send()
        wait_until(lambda: site.ended() > CREATES // 10, "some creates have ended", 60)
        primary.stop()
        standby.promote()
        primary.demote()  # and the address still leads there
        wait_until(
            lambda: any("takes no writes" in one for one in site.ready()),
            "readiness says that nothing can be written",
        )
        forwarder.target = standby.port
        site.check_all_created(sent)
        wait_until(lambda: site.ready() == [], "the service is ready again")
    finally:
        standby.close()


def test_connections_that_fall_silent_are_replaced(site: Site, forwarder: Forwarder) -> None:
    sent = site.send()
    wait_until(lambda: site.ended() > CREATES // 10, "some creates have ended", 60)
    assert forwarder.silence() > 0
    site.check_all_created(sent)
    wait_until(lambda: site.ready() == [], "the service is ready again")
