"""Priorities, depths and connections, against a real Redis."""

from __future__ import annotations

import ssl

import pytest
from celery import Celery

from tests.support.services import RedisServer
from worker.config import BrokerSettings
from worker.messaging import broker, redis_transport


@pytest.fixture(params=["tcp", "socket"])
def app(request: pytest.FixtureRequest, redis_server: RedisServer) -> Celery:
    url = redis_server.url() if request.param == "tcp" else redis_server.socket_url()
    app = Celery("broker", broker=url)
    app.conf.broker_transport_options = broker.transport_options(BrokerSettings(url=url))
    return app


def test_later_steps_come_before_first_steps(app: Celery) -> None:
    order = broker.priorities(app.conf.broker_url)
    for name, priority in [
        ("first", order.first_step),
        ("next", order.next_step),
        ("another first", order.first_step),
        ("another next", order.next_step),
    ]:
        app.send_task(name, queue="steps", priority=priority)
    options = broker.our_transport(app.conf.broker_url)
    names = []
    with (
        app.connection_for_read(**options) as connection,
        connection.SimpleQueue("steps") as queue,
    ):
        for _ in range(4):
            message = queue.get(timeout=5)
            names.append(message.headers["task"])
            message.ack()
    assert names == ["next", "another next", "first", "another first"]


def test_the_depth_counts_every_priority(app: Celery) -> None:
    with app.connection_for_read() as connection:
        assert broker.queue_depth(connection, "nobody knows it") == 0
        for priority in (0, 0, 5):
            app.send_task("task", queue="deep", priority=priority)
        assert broker.queue_depth(connection, "deep") == 3
        assert broker.queue_depth(connection, "nobody knows it") == 0


def test_a_worker_reads_through_our_transport(app: Celery) -> None:
    with app.connection_for_read(**broker.our_transport(app.conf.broker_url)) as connection:
        assert isinstance(connection.transport, redis_transport.Transport)
        assert isinstance(connection.default_channel, redis_transport.Channel)
        assert connection.default_channel.max_message_bytes == 262144


def test_tls_verifies_the_server_unless_the_url_says_otherwise() -> None:
    app = Celery("tls")
    for query, expected in [("", ssl.CERT_REQUIRED), ("?ssl_cert_reqs=none", ssl.CERT_NONE)]:
        url = f"rediss://broker.example:6380/0{query}"
        connection = app.connection_for_read(**broker.our_transport(url))
        assert connection.ssl["ssl_cert_reqs"] == expected


def test_other_brokers_are_left_alone() -> None:
    url = "amqp://broker.example//"
    assert broker.our_transport(url) == {}
    assert broker.transport_options(BrokerSettings(url=url)) == {"confirm_publish": True}
    order = broker.priorities(url)
    assert order.first_step <= 4 < order.next_step, "a quorum queue's two levels"
