"""Requests about operations."""

from __future__ import annotations

from scheduler.requests.base import ListPayload, Payload
from scheduler.requests.fields import Id, Text


class OperationOnly(Payload):
    """A request that names an operation."""

    operation_id: Id


class ListOperations(ListPayload):
    """Operations in the order of their acceptance."""

    state: Text | None = None
    verb: Text | None = None
    resource_id: Id | None = None
