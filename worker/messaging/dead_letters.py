"""Messages that no task can be run for are set aside where an operator sees them.

Celery drops some such messages with a line in the log, and others end the worker, again and again.
Here every message is looked at before Celery acts on it. One that fails goes to the quarantine,
and is acknowledged only when the quarantine has it.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from annotated_types import Len
from celery import Celery
from celery.worker import consumer
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from worker.config import describe
from worker.db.dead_letters import DeadLetter
from worker.messaging.broker import our_transport
from worker.messaging.redis_transport import FAULT_HEADER, KEPT_BODY_BYTES, SIZE_HEADER

KEPT_HEADERS: Final = 32
"""How many headers of a poisonous message are kept, each up to :data:`KEPT_HEADER_CHARACTERS`."""

KEPT_HEADER_CHARACTERS: Final = 512

KEPT_WHOLE: Final = 4 * KEPT_BODY_BYTES
"""How long a message may be, as JSON with its body in Base64, to be kept for a replay."""

_REPLAYED: Final = {"correlation_id": str, "reply_to": str, "priority": int}

WITHHELD: Final = "(not kept: it speaks of a password)"
"""What stands instead of a body or a header that does."""

# Also in base64, where the word may begin at any byte of three.
_SPEAKS_OF_A_PASSWORD: Final = re.compile(
    r"password|cGFzc3dvcm|Bhc3N3b3Jk|wYXNzd29yZ", re.IGNORECASE
)

RETRY_PAUSE: Final = 5.0
"""Seconds after which the quarantine is tried again when it failed."""

EVENTS_SECONDS: Final = 0.1
"""For how long the events of tasks are gathered: each publication costs as much as a task's own."""

REQUEST_TASKS: Final = "sharewright.request."

log = logging.getLogger(__name__)


KeepDeadLetter = Callable[[DeadLetter], None]
"""Keeps a message for good, or raises. Runs in the worker's main process, whose event loop waits
for it: it must be short and have a timeout."""


def install(app: Celery, keep_dead_letter: KeepDeadLetter, max_message_bytes: int) -> None:
    """Make the workers of this app set poisonous messages aside."""
    app.conf.worker_consumer = functools.partial(
        Consumer, keep_dead_letter=keep_dead_letter, max_message_bytes=max_message_bytes
    )


class _Lax(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


def _moment(text: str) -> str:
    try:
        datetime.fromisoformat(text).astimezone(UTC)
    except OverflowError as error:
        raise ValueError("a date beyond the calendar") from error
    return text


_Moment = Annotated[str, AfterValidator(_moment)]
_Id = Annotated[str, Field(min_length=1, max_length=255)]


class _Headers(_Lax):
    """The headers of Celery's task protocol 2 that a worker relies on without looking."""

    task: Annotated[str, Field(min_length=1, max_length=255)]
    id: _Id
    root_id: _Id | None = None
    parent_id: _Id | None = None
    group: _Id | None = None
    group_index: int | None = None
    shadow: str | None = None
    eta: _Moment | None = None
    expires: _Moment | None = None
    retries: int | None = None
    timelimit: Annotated[list[float | None], Len(2, 2)] | None = None
    argsrepr: str | None = None
    kwargsrepr: str | None = None
    origin: str | None = None
    lang: str | None = None
    ignore_result: bool | None = None
    replaced_task_nesting: int | None = None
    stamped_headers: list[str] | None = None
    stamps: dict[str, Any] | None = None


def _signature(document: dict[str, Any]) -> dict[str, Any]:
    # What a pool child made of a lesser one, the main process would be left with.
    parts = {"task": str, "args": list, "kwargs": dict, "options": dict}
    wrong = [part for part, kind in parts.items() if not isinstance(document.get(part), kind)]
    if wrong:
        raise ValueError(f"not the signature of a task: {', '.join(wrong)}")
    return document


_Signature = Annotated[dict[str, Any], AfterValidator(_signature)]


class _Embed(_Lax):
    callbacks: list[_Signature] | None = None
    errbacks: list[_Signature] | None = None
    chain: list[_Signature] | None = None
    chord: _Signature | None = None


# Kombu reads JSON as UTF-8 whatever the message says, so one that says otherwise is not read right.
_ENCODINGS: Final = frozenset({"utf-8", "us-ascii", "binary"})
_BODY: Final = TypeAdapter(tuple[list[Any], dict[str, Any], _Embed])


def fault(message: Any, tasks: Mapping[str, Any], max_message_bytes: int) -> str | None:
    """Why no task can be run for a kombu message; ``None`` when one can.

    Reads the body, which kombu remembers: a sound message is decoded no more often than without.
    """
    if FAULT_HEADER in message.headers:
        return str(message.headers[FAULT_HEADER])
    size = _size(message)
    if size > max_message_bytes:
        return f"it is {size} bytes long; at most {max_message_bytes} are accepted"
    try:
        headers = _Headers.model_validate(message.headers)
    except ValidationError as error:
        return f"its headers are not those of a task message: {'; '.join(describe(error)[:3])}"
    task = tasks.get(headers.task)
    if task is None:
        return f"there is no task named {headers.task!r} here"
    if str(message.content_encoding).lower() not in _ENCODINGS:
        return f"its content encoding is {message.content_encoding!r:.100}, not UTF-8 or binary"
    try:
        payload = message.payload
    # A serializer may raise anything on what a stranger wrote; the message is at fault.
    except Exception as error:  # noqa: BLE001 - see above
        return _unreadable(error)
    try:
        arguments, keywords, _ = _BODY.validate_python(payload, strict=False)
    except ValidationError as error:
        return f"its body is not [args, kwargs, embed]: {'; '.join(describe(error)[:3])}"
    return _mismatch(task, arguments, keywords)


def _mismatch(task: Any, arguments: list[Any], keywords: dict[str, Any]) -> str | None:
    if task.typing:
        try:
            task.__header__(*arguments, **keywords)
        except TypeError as error:
            return f"its arguments do not fit the task {task.name}: {error}"
    return None


def _unreadable(error: BaseException) -> str:
    return f"its body cannot be read: {type(error).__name__}: {str(error)[:200]}"


def _body(message: Any) -> bytes:
    body = message.body
    return body if isinstance(body, bytes) else str(body or "").encode(errors="backslashreplace")


def _size(message: Any) -> int:
    if FAULT_HEADER in message.headers and isinstance(message.headers.get(SIZE_HEADER), int):
        return int(message.headers[SIZE_HEADER])
    return len(_body(message)) + len(repr(message.headers)) + len(repr(message.properties))


def describe_message(message: Any, reason: str) -> DeadLetter:
    """What is kept of a kombu message."""
    body = _body(message)
    queue = str(message.delivery_info.get("routing_key") or "")
    headers = {
        str(name)[:KEPT_HEADER_CHARACTERS]: _harmless(str(value))[:KEPT_HEADER_CHARACTERS]
        for name, value in list(message.headers.items())[:KEPT_HEADERS]
        if name not in {FAULT_HEADER, SIZE_HEADER, "redelivered"}
    }
    # On Redis the tag stays with the message; on AMQP it is a number of the channel's own.
    tag = message.delivery_tag if isinstance(message.delivery_tag, str) else ""
    seen = repr((queue, tag, sorted(headers.items()))).encode() + body
    return DeadLetter(
        fingerprint=hashlib.sha256(seen).hexdigest(),
        queue=queue,
        reason=reason,
        # PostgreSQL's text cannot hold the one character that JSON's can.
        body=_harmless(body[:KEPT_BODY_BYTES].decode(errors="backslashreplace")).replace(
            "\0", "\\x00"
        ),
        headers={name.replace("\0", ""): text.replace("\0", "") for name, text in headers.items()},
        size=_size(message),
        received_at=datetime.now(UTC),
        message=_whole(message, body),
    )


def _whole(message: Any, body: bytes) -> str | None:
    """The message as :func:`publish_again` takes it; None where it is not kept whole."""
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
    if any(_SPEAKS_OF_A_PASSWORD.search(one) for one in said):
        return None  # it is kept nowhere
    return text if len(text) <= KEPT_WHOLE else None


def publish_again(app: Celery, queue: str, whole: str) -> None:
    """Publish a message that was kept whole to its queue, as it came.

    Raises what :data:`worker.messaging.broker.UNREACHABLE` lists.
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


def _harmless(text: str) -> str:
    return WITHHELD if _SPEAKS_OF_A_PASSWORD.search(text) else text


def _veil(message: Any) -> None:
    """What a producer asks for is nobody's business who watches events: no payload stands there."""
    if str(message.headers["task"]).startswith(REQUEST_TASKS):
        message.headers.update(argsrepr="(payload)", kwargsrepr="{}")


class Consumer(consumer.Consumer):  # type: ignore[misc] # celery ships no types
    """Celery's consumer, which looks at a message before it acts on it."""

    def __init__(
        self, *args: Any, keep_dead_letter: KeepDeadLetter, max_message_bytes: int, **kwargs: Any
    ) -> None:
        self._keep_dead_letter = keep_dead_letter
        self._max_message_bytes = max_message_bytes
        self._flushed_by = 0.0
        super().__init__(*args, **kwargs)

    def connection_for_read(self, heartbeat: float | None = None) -> Any:
        """Celery's, through our transport where the broker is Redis."""
        options = our_transport(self.app.conf.broker_read_url or "")
        if self.app.conf.broker_use_ssl:
            options.pop("ssl", None)
        return self.ensure_connected(self.app.connection_for_read(heartbeat=heartbeat, **options))

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        """Celery's, behind the check."""
        handle = super().create_task_handler(*args, **kwargs)

        def on_task_received(message: Any) -> Any:
            reason = fault(message, self.app.tasks, self._max_message_bytes)
            if reason is not None:
                return self._set_aside(message, reason)
            _veil(message)
            return handle(message)

        return on_task_received

    def on_send_event_buffered(self) -> None:
        """Celery's would send what is buffered with the next turn of the event loop."""
        now = time.monotonic()
        if now >= self._flushed_by:
            self._flushed_by = now + EVENTS_SECONDS
            self.hub.call_later(EVENTS_SECONDS, self._flush_events)

    def on_decode_error(self, message: Any, exc: BaseException) -> None:
        """Kombu's word that it could not read a message."""
        self._set_aside(message, _unreadable(exc))

    def on_invalid_task(self, body: Any, message: Any, exc: BaseException) -> None:  # noqa: ARG002 - Celery's own signature
        """Celery's word that headers which looked right were not (a date, for example)."""
        self._set_aside(message, f"it is not a task message: {str(exc)[:200]}")

    def _set_aside(self, message: Any, reason: str) -> None:
        self._keep(message, describe_message(message, reason))

    def _keep(self, message: Any, dead_letter: DeadLetter) -> None:
        try:
            self._keep_dead_letter(dead_letter)
        # Whatever the quarantine meets, the message stays unacknowledged and is tried again; the
        # worker has other work.
        except Exception:
            log.exception(
                "A message of queue %s that no task can be run for could not be set aside; it "
                "stays unacknowledged and is tried again in %g s.",
                dead_letter.queue,
                RETRY_PAUSE,
            )
            self.timer.call_after(RETRY_PAUSE, self._keep, (message, dead_letter))
            return
        log.warning("Set aside a message of queue %s: %s.", dead_letter.queue, dead_letter.reason)
        message.ack_log_error(log, self.connection_errors)
