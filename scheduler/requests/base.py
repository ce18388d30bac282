"""Common parts of all requests: payloads, verbs, parsing and digests."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    TypeAdapter,
    ValidationError,
)

from scheduler.requests.fields import Description, Id, Label, Metadata, Name, Text, whole
from worker.config import problem
from worker.errors import InvalidRequest

PREFIX: Final = "sharewright.request."


class StrictModel(BaseModel):
    """Model that refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Context(StrictModel):
    """Project, user and roles of a request; every producer is trusted to state them correctly."""

    project_id: Id
    user_id: Label = ""
    roles: tuple[Label, ...] = ()
    request_id: Label = ""


class Payload(StrictModel):
    """Fields of every request.

    ``secret_fields`` are not stored with the operation, only in the object's own row.
    """

    secret_fields: ClassVar[frozenset[str]] = frozenset()
    version: Annotated[Literal[1], BeforeValidator(whole)]
    context: Context
    idempotency_key: Text | None = None


class Described(Payload):
    """Fields of a request that names and describes the object it creates."""

    name: Name = ""
    description: Description = ""
    metadata: Metadata = Field(default_factory=dict)


class ListPayload(Payload):
    """Fields of a request for a page of a list; ``marker`` is the previous page's last id."""

    limit: Annotated[int, Field(strict=True, ge=1, le=1000)] = 100
    marker: Id | None = None
    all_projects: StrictBool = False


class Kind(StrEnum):
    """How a verb is carried out."""

    CHAIN = "chain"
    """As an operation with steps."""
    ROW = "row"
    """As an operation that has succeeded once its rows are written."""
    READ = "read"
    """As a read, without an operation: the answer is the result."""


@dataclass(frozen=True, slots=True)
class Verb:
    """Verb of a request: its name, payload model and kind."""

    name: str
    model: type[Payload]
    kind: Kind
    admin: bool = False
    """Whether it is accepted from the queue ``requests.admin`` only."""

    @property
    def task(self) -> str:
        """The name of the verb's Celery task."""
        return PREFIX + self.name


def parse(verb: Verb, payload: Any) -> Payload:
    """Validate a payload; raise :class:`~worker.errors.InvalidRequest`, which names the field."""
    if not isinstance(payload, dict):
        raise InvalidRequest(f"{verb.name} takes one JSON object as its payload.")
    try:
        return verb.model.model_validate(payload)
    except InvalidRequest as error:
        raise InvalidRequest(
            f"{verb.name}: {error.field}: {error.message}", field=error.field
        ) from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(
            f"{verb.name}: {field or 'payload'}: {problem(first)}.", field=field
        ) from None


_ID: Final = TypeAdapter(Id)


def is_id(value: str) -> bool:
    """Tell whether a message's id is valid as an operation's id."""
    try:
        _ID.validate_python(value)
    except ValidationError:
        return False
    return True


def digest(verb: Verb, payload: Payload) -> str:
    """Return a digest that is equal for requests of the same content, whoever makes them."""
    asked = payload.model_dump(mode="json", exclude={"context": {"request_id", "roles", "user_id"}})
    text = json.dumps([verb.name, asked], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
