"""Requests about access rules."""

from __future__ import annotations

from typing import Annotated, Literal

from netaddr import AddrFormatError, IPNetwork
from pydantic import (
    AfterValidator,
)

from scheduler.requests.base import ListPayload
from scheduler.requests.fields import Id, Text
from scheduler.requests.shares import ShareOnly
from worker.model import AccessState


def _client(value: str) -> str:
    """An address or CIDR, in one spelling; host bits beside a prefix are a mistake."""
    try:
        network = IPNetwork(value)
    except (AddrFormatError, ValueError) as error:
        raise ValueError(f"{value!r} is neither an IP address nor a CIDR") from error
    if network.ip != network.network:
        raise ValueError(f"{value!r} has host bits set; did you mean {network.cidr}?")
    return str(network.ip) if network.size == 1 else str(network.cidr)


class AllowAccess(ShareOnly):
    """Let clients in: an address or a CIDR."""

    access_type: Literal["ip"] = "ip"
    access_to: Annotated[Text, AfterValidator(_client)]
    access_level: Literal["rw", "ro"] = "rw"


class DenyAccess(ShareOnly):
    """Withdraw a rule."""

    access_id: Id


class ListAccess(ListPayload):
    """A share's access rules, oldest first."""

    share_id: Id
    state: AccessState | None = None
