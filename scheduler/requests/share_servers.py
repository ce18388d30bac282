"""Requests about share servers."""

from __future__ import annotations

from pydantic import (
    model_validator,
)

from scheduler.requests.base import ListPayload, Payload
from scheduler.requests.fields import Id, Text
from worker.model import ServerStatus


class ShareServerOnly(Payload):
    """A request that names a share server."""

    share_server_id: Id


class EnsureShareServers(Payload):
    """Restore share servers and exports: of one server, one backend, one host, or all."""

    share_server_id: Id | None = None
    backend: Text | None = None
    host: Text | None = None

    @model_validator(mode="after")
    def _one_at_most(self) -> EnsureShareServers:
        if sum(one is not None for one in (self.share_server_id, self.backend, self.host)) > 1:
            raise ValueError("name a share server, a backend or a host, not several of them")
        return self


class ListShareServers(ListPayload):
    """List share servers, oldest first."""

    status: ServerStatus | None = None
    share_network_id: Id | None = None
    backend: Text | None = None
