"""Turn messages that no task can be run for into dead letters, and replay them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from datetime import UTC, datetime
from typing import Any, Final

from celery import Celery

from worker.db.dead_letters import DeadLetter
from worker.messaging.redis_transport import FAULT_HEADER, KEPT_BODY_BYTES, SIZE_HEADER
from worker.messaging.task_messages import body_of, size_of

KEPT_HEADERS: Final = 32
"""The number of headers that a dead letter keeps, each cut to :data:`KEPT_HEADER_CHARACTERS`."""

KEPT_HEADER_CHARACTERS: Final = 512

KEPT_WHOLE: Final = 4 * KEPT_BODY_BYTES
"""The longest message that is kept for a replay, in characters of JSON with a Base64 body."""

_REPLAYED: Final = {"correlation_id": str, "reply_to": str, "priority": int}

WITHHELD: Final = "(not kept: it contains the word password)"
"""Replaces a body or header that contains the word."""

# The word itself, and in Base64, where it may begin at any of three bytes.
_NAMES_A_PASSWORD: Final = re.compile(r"password|cGFzc3dvcm|Bhc3N3b3Jk|wYXNzd29yZ", re.IGNORECASE)


def queue_of(message: Any) -> str:
    """Return the name of the queue that a message came from."""
    return str(message.delivery_info.get("routing_key") or "")


def describe_message(message: Any, reason: str) -> DeadLetter:
    """Return a kombu message as a dead letter, with the reason why no task can be run for it."""
    body = body_of(message)
    queue = queue_of(message)
    headers = {
        str(name)[:KEPT_HEADER_CHARACTERS]: _without_password(str(value))[:KEPT_HEADER_CHARACTERS]
        for name, value in list(message.headers.items())[:KEPT_HEADERS]
        if name not in {FAULT_HEADER, SIZE_HEADER, "redelivered"}
    }
    # On Redis the tag stays with the message; on AMQP it is a number that the channel assigns.
    tag = message.delivery_tag if isinstance(message.delivery_tag, str) else ""
    seen = repr((queue, tag, sorted(headers.items()))).encode() + body
    return DeadLetter(
        fingerprint=hashlib.sha256(seen).hexdigest(),
        queue=queue,
        reason=reason,
        # PostgreSQL's text type cannot store the character NUL.
        body=_without_password(body[:KEPT_BODY_BYTES].decode(errors="backslashreplace")).replace(
            "\0", "\\x00"
        ),
        headers={name.replace("\0", ""): text.replace("\0", "") for name, text in headers.items()},
        size=size_of(message),
        received_at=datetime.now(UTC),
        message=_whole(message, body),
    )


def _whole(message: Any, body: bytes) -> str | None:
    """Return the message as JSON for :func:`publish_again`; None if it cannot be kept whole.

    Not kept whole are messages that are too long, contain the word "password" or cannot be written
    as JSON.
    """
    types = (message.content_type, message.content_encoding)
    if (
        FAULT_HEADER in message.headers
        or len(body) > KEPT_BODY_BYTES
        or not all(isinstance(one, str) for one in types)
    ):
        return None
    document = {
        "body": base64.b64encode(body).decode(),
        "headers": {name: v for name, v in message.headers.items() if name != "redelivered"},
        "content_type": message.content_type,
        "content_encoding": message.content_encoding,
        "properties": {
            name: message.properties[name]
            for name, kind in _REPLAYED.items()
            if isinstance(message.properties.get(name), kind)
        },
    }
    try:
        text = json.dumps(document)
    except (TypeError, ValueError, RecursionError):
        return None
    said = (text, body.decode(errors="replace"))
    if any(_NAMES_A_PASSWORD.search(one) for one in said):
        return None
    return text if len(text) <= KEPT_WHOLE else None


def publish_again(app: Celery, queue: str, whole: str) -> None:
    """Publish a message that was kept whole to its queue, unchanged.

    ``whole`` is :attr:`~worker.db.dead_letters.DeadLetter.message`. Raises what
    :data:`worker.messaging.broker.UNREACHABLE` lists.
    """
    document = json.loads(whole)
    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, timeout=5.0)
        with connection.Producer(serializer=None) as producer:
            producer.publish(
                base64.b64decode(document["body"]),
                exchange="",
                routing_key=queue,
                headers=document["headers"],
                content_type=document["content_type"],
                content_encoding=document["content_encoding"],
                retry=False,
                **document["properties"],
            )


def _without_password(text: str) -> str:
    return WITHHELD if _NAMES_A_PASSWORD.search(text) else text
