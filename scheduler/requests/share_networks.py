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
    """Where share servers get their addresses from; the options given make its kind."""

    is_public: Annotated[
        StrictBool,
        Field(description="For every project to use; administrators only (`requests.admin`)."),
    ] = False


class ShareNetworkOnly(Payload):
    """A request that names a share network and nothing else."""

    share_network_id: Id


class UpdateShareNetwork(ShareNetworkOnly, NetworkOptions):
    """Change a share network; what is left out stays.

    Options that make the kind replace all that there were, and only while nothing uses the
    network.
    """

    name: Name | None = None
    description: Description | None = None
    metadata: Metadata | None = None

    @property
    def described(self) -> dict[str, Any]:
        """The new values of what is no option."""
        return self.model_dump(include={"name", "description", "metadata"}, exclude_none=True)


class ListShareNetworks(ListPayload):
    """Share networks, oldest first."""

    name: Name | None = None
    kind: NetworkKind | None = None
