"""Requests about backends."""

from __future__ import annotations

from typing import Annotated

from pydantic import (
    Field,
    StrictBool,
)

from scheduler.requests.base import ListPayload, Payload
from scheduler.requests.fields import Name, Text


class AuditBackend(Payload):
    """Compare the database with the objects that a backend's driver and helpers list."""

    backend: Text
    repair: Annotated[
        StrictBool,
        Field(description="Remove orphans that were seen in two audits and are old enough."),
    ] = False


class BackendOnly(Payload):
    """A request that names a backend."""

    backend: Text


class DisableBackend(BackendOnly):
    """Exclude a backend from placement; its shares stay in service."""

    reason: Name = ""


class ListBackends(ListPayload):
    """List backends by name; ``marker`` is a backend's name."""
