"""Requests about security services."""

from __future__ import annotations

from typing import Any, ClassVar

from scheduler.requests.base import ListPayload, Payload
from scheduler.requests.fields import Description, Id, Name
from scheduler.requests.security_options import SecurityOptions
from scheduler.requests.share_networks import ShareNetworkOnly
from worker.model import SecurityServiceType


class CreateSecurityService(Payload, SecurityOptions):
    """A directory that share servers authenticate users against.

    `active_directory` needs `dns_ip`, `domain`, `user` and `password`; `kerberos` needs `dns_ip`,
    `domain` and `server`; `ldap` needs `server` or `domain`.
    """

    secret_fields: ClassVar[frozenset[str]] = frozenset({"password"})
    type: SecurityServiceType
    name: Name = ""
    description: Description = ""


class SecurityServiceOnly(Payload):
    """A request that names a security service and nothing else."""

    security_service_id: Id


class UpdateSecurityService(SecurityServiceOnly, SecurityOptions):
    """Change a security service; what is left out stays.

    More than name and description only while no share network that it is added to is in use.
    """

    secret_fields: ClassVar[frozenset[str]] = frozenset({"password"})
    name: Name | None = None
    description: Description | None = None

    @property
    def described(self) -> dict[str, Any]:
        """The new values of what servers are not told."""
        return self.model_dump(include={"name", "description"}, exclude_none=True)


class AddSecurityService(ShareNetworkOnly):
    """Let new share servers of a share network use a security service: one of each type."""

    security_service_id: Id


class RemoveSecurityService(ShareNetworkOnly):
    """Let new share servers of a share network do without a security service."""

    security_service_id: Id


class ShowSealingKey(Payload):
    """The public key that passwords are sealed with, in base64, and its id."""


class ListSecurityServices(ListPayload):
    """Security services, oldest first."""

    name: Name | None = None
    type: SecurityServiceType | None = None
    share_network_id: Id | None = None
