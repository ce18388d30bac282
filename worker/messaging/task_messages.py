"""Check task messages before Celery handles them.

Celery drops some of the messages that it cannot read. Others crash the worker each time that they
are delivered.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from annotated_types import Len
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from worker.config import describe
from worker.messaging.redis_transport import FAULT_HEADER, SIZE_HEADER


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
    """The headers of Celery's task protocol 2 whose types a worker does not check."""

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
    # The main process reads signatures too, and an incomplete one would crash it.
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


# Kombu decodes JSON as UTF-8 whatever encoding the message names.
_ENCODINGS: Final = frozenset({"utf-8", "us-ascii", "binary"})
_BODY: Final = TypeAdapter(tuple[list[Any], dict[str, Any], _Embed])


def fault(message: Any, tasks: Mapping[str, Any], max_message_bytes: int) -> str | None:
    """Return the reason why no task can be run for a kombu message; None if one can.

    The body is decoded here, and kombu keeps the result: Celery does not decode it again.
    """
    if FAULT_HEADER in message.headers:
        return str(message.headers[FAULT_HEADER])
    size = size_of(message)
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
    # A deserializer may raise any exception on untrusted input; the message is at fault.
    except Exception as error:  # noqa: BLE001 - see above
        return unreadable(error)
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


def unreadable(error: BaseException) -> str:
    """Return the reason for a message whose body cannot be decoded."""
    return f"its body cannot be read: {type(error).__name__}: {str(error)[:200]}"


def body_of(message: Any) -> bytes:
    """Return a message's body as it came from the broker."""
    body = message.body
    return body if isinstance(body, bytes) else str(body or "").encode(errors="backslashreplace")


def size_of(message: Any) -> int:
    """Return a message's size in bytes, including its headers and properties."""
    if FAULT_HEADER in message.headers and isinstance(message.headers.get(SIZE_HEADER), int):
        return int(message.headers[SIZE_HEADER])
    return len(body_of(message)) + len(repr(message.headers)) + len(repr(message.properties))
