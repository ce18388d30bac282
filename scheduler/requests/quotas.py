"""Requests about quotas."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from scheduler.requests.base import Payload
from scheduler.requests.fields import Id, Text
from worker.errors import InvalidRequest
from worker.model import QuotaResource

Limit = Annotated[
    int, Field(strict=True, ge=-1, le=2**31 - 1, description="Greatest number; -1: no limit.")
]


class ShowQuota(Payload):
    """Show a project's limits, usage and reservations; another project's needs the role admin."""

    project_id: Annotated[Id | None, Field(description="By default the requesting project.")] = None
    share_type: Annotated[
        Text | None, Field(description="Id or name; only objects of this share type count.")
    ] = None


class UnsetQuota(Payload):
    """Restore a project's default limits, or remove those of one share type."""

    project_id: Id
    share_type: Text | None = None


class SetQuota(UnsetQuota):
    """Set limits of a project, in all or of one share type; existing objects stay."""

    shares: Limit | None = None
    gigabytes: Limit | None = None
    snapshots: Limit | None = None
    snapshot_gigabytes: Limit | None = None
    share_networks: Limit | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> SetQuota:
        if not self.maximums:
            names = ", ".join(QuotaResource)
            raise InvalidRequest(f"Give at least one limit: {names}.", field="shares")
        if self.share_type is not None and self.share_networks is not None:
            raise InvalidRequest(
                "Share networks have no share type; leave share_networks or share_type out.",
                field="share_networks",
            )
        return self

    @property
    def maximums(self) -> dict[QuotaResource, int]:
        """The limits that are given, by resource."""
        given = {resource: getattr(self, resource.value) for resource in QuotaResource}
        return {resource: maximum for resource, maximum in given.items() if maximum is not None}
