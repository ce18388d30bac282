"""What every request has in common: payloads, verbs, parsing and digests."""

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
    """Refuses fields that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Context(StrictModel):
    """On whose behalf; whoever may publish on a request queue is trusted for it."""

    project_id: Id
    user_id: Label = ""
    roles: tuple[Label, ...] = ()
    request_id: Label = ""


class Payload(StrictModel):
    """What every request carries.

    ``secret_fields`` are not kept with the operation: the object's own row has them.
    """

    secret_fields: ClassVar[frozenset[str]] = frozenset()
    version: Annotated[Literal[1], BeforeValidator(whole)]
    context: Context
    idempotency_key: Text | None = None


class Described(Payload):
    """A request that names and describes what it creates."""

    name: Name = ""
    description: Description = ""
    metadata: Metadata = Field(default_factory=dict)


class ListPayload(Payload):
    """A page of a list: ``marker`` is the id of the last object of the page before."""

    limit: Annotated[int, Field(strict=True, ge=1, le=1000)] = 100
    marker: Id | None = None
    all_projects: StrictBool = False


class Kind(StrEnum):
    """What a verb comes to."""

    CHAIN = "chain"
    """An operation with steps."""
    ROW = "row"
    """An operation that is done once its rows are written."""
    READ = "read"
    """No operation: the answer is the result."""


@dataclass(frozen=True, slots=True)
class Verb:
    """A request that may be made."""

    name: str
    model: type[Payload]
    kind: Kind
    admin: bool = False
    """Accepted from the queue ``requests.admin`` only."""

    @property
    def task(self) -> str:
        """The Celery task's name."""
        return PREFIX + self.name


def parse(verb: Verb, payload: Any) -> Payload:
    """Validate a payload; raises :class:`~worker.errors.InvalidRequest` naming the field."""
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
    """Whether a message's id can be an operation's."""
    try:
        _ID.validate_python(value)
    except ValidationError:
        return False
    return True


def digest(verb: Verb, payload: Payload) -> str:
    """Tell whether two requests ask for the same; who asked and when does not count."""
    asked = payload.model_dump(mode="json", exclude={"context": {"request_id", "roles", "user_id"}})
    text = json.dumps([verb.name, asked], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
