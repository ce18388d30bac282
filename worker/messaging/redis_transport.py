"""Consume messages from Redis without trusting their format.

Kombu's own Redis transport removes an item from its list before checking it: an item that is not a
message crashes the worker and is lost. :class:`Transport` passes on every item as a message. An
invalid item has its fault in a header, and :mod:`worker.messaging.dead_letters` keeps it.
"""

from __future__ import annotations

import base64
import json
import uuid
from typing import Annotated, Any, Final, Literal

from kombu.transport import redis
from kombu.utils.json import loads
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from worker.config import describe

KEPT_BODY_BYTES: Final = 16384
"""Bytes of a dead letter's body that are kept."""

FAULT_HEADER: Final = "sharewright-fault"
SIZE_HEADER: Final = "sharewright-size"


class _Lax(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _DeliveryInfo(_Lax):
    exchange: str
    routing_key: str


class _Properties(_Lax):
    delivery_tag: Annotated[str, Field(min_length=1, max_length=255)]
    delivery_info: _DeliveryInfo
    body_encoding: Literal["base64"] | None = None
    correlation_id: str | None = None
    reply_to: str | None = None


def _uncompressed(headers: dict[str, Any]) -> dict[str, Any]:
    # A few KiB may decompress to more memory than the machine has, before the size is checked.
    if headers.get("compression"):
        raise ValueError("compressed messages are not accepted")
    return headers


class _Envelope(_Lax):
    """The fields of an item in a Redis list that kombu reads without checking them."""

    body: str
    headers: Annotated[dict[str, Any], AfterValidator(_uncompressed)]
    properties: _Properties
    content_type: str = Field(alias="content-type")
    content_encoding: str = Field(alias="content-encoding")


def _fault(item: bytes, longest: int) -> str | None:
    """Return the reason why kombu could not read an item of a Redis list; None if it can."""
    if len(item) > longest:
        return f"it is {len(item)} bytes long"
    try:
        document = loads(item.decode())  # type: ignore[no-untyped-call] # kombu's, half typed
        envelope = _Envelope.model_validate(document)
        if envelope.properties.body_encoding:
            base64.b64decode(envelope.body)
    except ValidationError as error:
        return f"its envelope is not kombu's: {'; '.join(describe(error)[:3])}"
    # Kombu's JSON decoder may raise any exception, even RecursionError. The item is at fault, and
    # its dead letter says so.
    except Exception as error:  # noqa: BLE001 - see above
        return f"it cannot be read as a message: {type(error).__name__}: {str(error)[:200]}"
    return None


class Channel(redis.Channel):
    """Kombu's channel, which reads any item of a list as a message and reuses its client.

    Kombu creates a client for every command, which takes as long as the command itself.
    """

    max_message_bytes = 262144
    from_transport_options = (  # type: ignore[assignment] # kombu's has a fixed length
        *redis.Channel.from_transport_options,
        "max_message_bytes",
    )

    _kept: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002 - kombu's
        if not asynchronous and self._kept and self._kept.connection_pool is self.pool:
            return self._kept
        client = super()._create_client(asynchronous)  # type: ignore[no-untyped-call] # kombu's
        client.set_response_callback("BRPOP", self._as_message)
        if not asynchronous:
            self._kept = client
        return client

    def _as_message(self, response: Any, **_options: Any) -> tuple[bytes, bytes] | None:
        if not response:
            return None
        key, item = response
        # The limit is for the body; Base64 and the envelope add to it.
        fault = _fault(item, 2 * self.max_message_bytes)
        if fault is None:
            return key, item
        queue = key.decode().removeprefix(self.global_keyprefix).rsplit(self.sep, 1)[0]
        return key, _wrap(item, queue, fault)


def _wrap(item: bytes, queue: str, fault: str) -> bytes:
    """Wrap an invalid item in a valid message; ``queue`` is where kombu would restore it to."""
    return json.dumps(
        {
            "body": base64.b64encode(item[:KEPT_BODY_BYTES]).decode(),
            "headers": {FAULT_HEADER: fault, SIZE_HEADER: len(item)},
            "content-type": "application/data",
            "content-encoding": "binary",
            "properties": {
                "body_encoding": "base64",
                "delivery_tag": str(uuid.uuid4()),
                "delivery_info": {"exchange": "", "routing_key": queue},
            },
        }
    ).encode()


class Transport(redis.Transport):
    """Kombu's Redis transport with :class:`Channel`."""

    Channel = Channel

    def _deliver(self, message: dict[str, Any], queue: str) -> None:
        # The producer chooses the queue that a message names; the broker's permissions apply to the
        # queue that it was read from.
        message["properties"]["delivery_info"].update(exchange="", routing_key=queue)
        super()._deliver(message, queue)  # type: ignore[no-untyped-call] # kombu's, half typed


class SocketTransport(Transport):
    """The transport over a unix socket, whose URL kombu must not split."""

    can_parse_url = True
