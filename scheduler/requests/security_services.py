"""Requests about security services."""

from __future__ import annotations

from typing import Any, ClassVar

from scheduler.requests.base import ListPayload, Payload
from scheduler.requests.fields import Description, Id, Name
from scheduler.requests.security_options import SecurityOptions
from scheduler.requests.share_networks import ShareNetworkOnly
from worker.model import SecurityServiceType


class CreateSecurityService(Payload, SecurityOptions):
    """Create a security service: a directory in which share servers authenticate users.

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
    """Change a security service; fields that are left out keep their values.

    Fields other than name, description, user and password can change only while no share network
    that it is added to is in use.
    """

    secret_fields: ClassVar[frozenset[str]] = frozenset({"password"})
    name: Name | None = None
    description: Description | None = None

    @property
    def described(self) -> dict[str, Any]:
        """The new values of the fields that share servers do not use."""
        return self.model_dump(include={"name", "description"}, exclude_none=True)


class AddSecurityService(ShareNetworkOnly):
    """Add a security service, one of each type, to a share network for its new share servers."""

    security_service_id: Id


class RemoveSecurityService(ShareNetworkOnly):
    """Remove a security service from a share network for its new share servers."""

    security_service_id: Id


class ShowSealingKey(Payload):
    """Show the public key for sealing passwords, in base64, and its id."""


class ListSecurityServices(ListPayload):
    """List security services, oldest first."""

    name: Name | None = None
    type: SecurityServiceType | None = None
    share_network_id: Id | None = None
