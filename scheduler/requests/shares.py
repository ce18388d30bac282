"""Requests about shares."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
)

from scheduler.requests.base import Described, ListPayload, Payload
from scheduler.requests.fields import Id, Name, Size, Text
from worker.model import ShareStatus


class CreateShare(Described):
    """Create a share, empty or from a snapshot. ``size`` is whole GiB."""

    size: Size
    share_proto: Literal["NFS", "CIFS"] = "NFS"
    share_type: Annotated[Text | None, Field(description="Name or id of a share type.")] = None
    share_network_id: Id | None = None
    snapshot_id: Id | None = None


class ShareOnly(Payload):
    """A request that names a share and nothing else."""

    share_id: Id


class ExtendShare(ShareOnly):
    """Extend a share. ``new_size`` is whole GiB."""

    new_size: Size


class ListShares(ListPayload):
    """List shares, oldest first."""

    name: Name | None = None
    status: ShareStatus | None = None
    share_network_id: Id | None = None
    share_server_id: Id | None = None
    share_type: Text | None = None
    snapshot_id: Id | None = None
    backend: Text | None = None
