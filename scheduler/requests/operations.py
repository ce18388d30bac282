"""Requests about operations."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StrictBool

from scheduler.requests.base import ListPayload, Payload
from scheduler.requests.fields import Id, Text
from worker.model import OperationState


class OperationOnly(Payload):
    """A request that names an operation."""

    operation_id: Id


class ListOperations(ListPayload):
    """List operations in the order of their acceptance, or newest first."""

    state: OperationState | None = None
    verb: Text | None = None
    resource_id: Id | None = None
    live: Annotated[StrictBool, Field(description="Only those that have not ended.")] = False
    older_than: Annotated[
        float | None, Field(ge=0, description="Only those accepted longer ago, in seconds.")
    ] = None
    newest_first: StrictBool = False
