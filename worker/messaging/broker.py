"""Handle the differences between brokers: options, priorities, queue depths."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from worker.config import BrokerSettings

UNREACHABLE: Final = (OSError, OperationalError, RedisError)
"""What publishing, storing a result or reading a queue's depth raises during an outage."""

_REDIS_SCHEMES: Final = frozenset({"redis", "rediss", "redis+socket"})
_TRANSPORT: Final = "worker.messaging.redis_transport:Transport"
_NOT_FOUND: Final = "404"  # AMQP's reply code; kombu's Redis transport gives it as a text


@dataclass(frozen=True, slots=True)
class Priorities:
    """The message priorities of an operation's first step and of its later steps.

    Later steps go first: otherwise all first steps of a backlog would run before any second one.
    """

    first_step: int
    next_step: int
    strict: bool
    """Whether a message waits until no message of a higher priority is left."""


def is_redis(url: str) -> bool:
    """Return whether kombu's Redis transport serves this broker URL; Sentinel's is another one."""
    return urlsplit(url).scheme in _REDIS_SCHEMES


def priorities(url: str) -> Priorities:
    """Return the priorities that the broker at this URL understands.

    Redis through kombu takes the lowest number first. A RabbitMQ quorum queue (4.0 and later)
    knows two levels: up to 4, and above.
    """
    if is_redis(url) or urlsplit(url).scheme == "sentinel":
        return Priorities(first_step=5, next_step=0, strict=True)
    return Priorities(first_step=0, next_step=5, strict=False)


def transport_options(config: BrokerSettings) -> dict[str, Any]:
    """Return Celery's ``broker_transport_options`` for the configured broker.

    By default kombu looks for unacknowledged messages every 100 s only. With 2 s they come back
    soon after the visibility timeout.
    """
    if not is_redis(config.url):
        return {"confirm_publish": True}
    steps = priorities(config.url)
    return {
        "priority_steps": sorted({steps.first_step, steps.next_step}),
        "visibility_timeout": config.visibility_timeout,
        "unacked_restore_interval": 2,
        "unacked_restore_throttle": 1,
        "max_message_bytes": config.max_message_bytes,
        "socket_connect_timeout": 5,
        "socket_timeout": 15,
        "socket_keepalive": True,
    }


def request_transport_options(config: BrokerSettings) -> dict[str, Any]:
    """Return Celery's ``broker_transport_options`` for a process that consumes requests.

    Kombu uses one Redis list per priority, and the producer's own ``priority_steps`` decide which.
    This reads the lists of all priorities, whatever a producer has set.
    """
    options = transport_options(config)
    if "priority_steps" in options:
        options["priority_steps"] = list(range(10))
    return options


def queue_depth(connection: Any, queue: str) -> int:
    """Return how many messages of all priorities wait in a queue; 0 when it does not exist.

    ``connection`` is a kombu connection, such as ``app.connection_for_read()`` gives.
    """
    with connection.channel() as channel:
        try:
            return int(channel.queue_declare(queue, passive=True).message_count)
        except connection.channel_errors as error:
            if str(getattr(error, "reply_code", "")) == _NOT_FOUND:
                return 0
            raise


def our_transport(url: str) -> dict[str, Any]:
    """Return the arguments of ``app.connection_for_read`` and ``_for_write`` for our transport.

    Empty unless the broker is Redis.
    """
    match urlsplit(url).scheme:
        case "redis":
            return {"url": url, "transport": _TRANSPORT}
        case "rediss":
            # Kombu's own default for this scheme would not verify the server.
            verify = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
            return {
                "url": url,
                "transport": _TRANSPORT,
                "ssl": verify,
            }
        case "redis+socket":
            bare = url.removeprefix("redis+")
            return {"url": bare, "transport": "worker.messaging.redis_transport:SocketTransport"}
        case _:
            return {}
