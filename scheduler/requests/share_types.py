"""Requests about share types."""

from __future__ import annotations

from pydantic import (
    Field,
)

from scheduler.requests.base import ListPayload, Payload
from scheduler.requests.fields import Description, Metadata, Name, Text


class CreateShareType(Payload):
    """Create a share type: a named set of requirements on a backend (``extra_specs``)."""

    name: Text
    description: Description = ""
    extra_specs: Metadata = Field(default_factory=dict)


class ShareTypeOnly(Payload):
    """A request that names a share type, by id or name."""

    share_type: Text


class ListShareTypes(ListPayload):
    """List share types, oldest first."""

    name: Name | None = None
