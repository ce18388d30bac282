"""Requests about access rules."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
)

from scheduler.requests.base import ListPayload
from scheduler.requests.fields import Id, Text
from scheduler.requests.shares import ShareOnly
from worker.addressing import client_network
from worker.model import AccessState


def _client(value: str) -> str:
    """Return an address or CIDR in its canonical spelling, by which rules are compared."""
    try:
        network = client_network(value)
    except ValueError as error:
        raise ValueError(f"{value!r} {error}") from error
    return str(network.ip) if network.size == 1 else str(network.cidr)


class AllowAccess(ShareOnly):
    """Allow clients access to a share, by address or CIDR."""

    access_type: Literal["ip"] = "ip"
    access_to: Annotated[Text, AfterValidator(_client)]
    access_level: Literal["rw", "ro"] = "rw"


class DenyAccess(ShareOnly):
    """Deny access: remove an access rule of a share."""

    access_id: Id


class ListAccess(ListPayload):
    """List a share's access rules, oldest first."""

    share_id: Id
    state: AccessState | None = None
