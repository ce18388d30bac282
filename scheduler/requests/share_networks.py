"""Requests about share networks."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    Field,
    StrictBool,
)

from scheduler.requests.base import Described, ListPayload, Payload
from scheduler.requests.fields import Description, Id, Metadata, Name
from scheduler.requests.network_options import NetworkOptions
from worker.model import NetworkKind


class CreateShareNetwork(Described, NetworkOptions):
    """Create a share network, the source of share servers' addresses; its options set its kind."""

    is_public: Annotated[
        StrictBool,
        Field(description="For every project to use; administrators only (`requests.admin`)."),
    ] = False


class ShareNetworkOnly(Payload):
    """A request that names a share network and nothing else."""

    share_network_id: Id


class UpdateShareNetwork(ShareNetworkOnly, NetworkOptions):
    """Change a share network; fields that are left out keep their values.

    Options of a kind replace all earlier options, and only while nothing uses the network.
    """

    name: Name | None = None
    description: Description | None = None
    metadata: Metadata | None = None

    @property
    def described(self) -> dict[str, Any]:
        """The new values of the fields that are not options."""
        return self.model_dump(include={"name", "description", "metadata"}, exclude_none=True)


class ListShareNetworks(ListPayload):
    """List share networks, oldest first."""

    name: Name | None = None
    kind: NetworkKind | None = None
