"""Queries of security services, and of the key that seals their passwords."""

from __future__ import annotations

import base64
from typing import Any

from sqlalchemy import (
    Connection,
    select,
)

from scheduler.queries.base import list_rows, show
from scheduler.requests.security_services import (
    ListSecurityServices,
    SecurityServiceOnly,
    ShowSealingKey,
)
from worker.config import Config
from worker.db import views
from worker.db.tables.main import (
    security_services,
    share_network_security_services,
)
from worker.errors import ConfigurationError, NotFound, ObjectKind
from worker.sealing import Keys


def show_security_service(
    connection: Connection, request: SecurityServiceOnly, _config: Config
) -> dict[str, Any]:
    """Return one security service, with the id of the key that seals its password."""
    service_id = request.security_service_id
    return show(
        connection, views.SECURITY_SERVICE, ObjectKind.SECURITY_SERVICE, request.context, service_id
    )


def list_security_services(
    connection: Connection, request: ListSecurityServices, _config: Config
) -> dict[str, Any]:
    """Return a page of security services."""
    conditions = []
    if request.share_network_id is not None:
        a = share_network_security_services.c
        added = select(a.security_service_id).where(a.share_network_id == request.share_network_id)
        conditions.append(security_services.c.id.in_(added))
    filters = request.model_dump(include={"name", "type"}, mode="json")
    return list_rows(
        connection, views.SECURITY_SERVICE, "security_services", request, filters, *conditions
    )


def show_sealing_key(
    _connection: Connection, _request: ShowSealingKey, config: Config
) -> dict[str, Any]:
    """Return the public key for sealing passwords."""
    try:
        key = Keys(config.secrets.directory).current()
    except ConfigurationError as error:
        raise NotFound(error.message, object=ObjectKind.SEALING_KEY.ref("current")) from error
    if key is None:
        raise NotFound(
            "This service has no key to seal passwords with; an administrator creates one with "
            "`sharewright secrets generate`.",
            object=ObjectKind.SEALING_KEY.ref("current"),
        )
    return {"key_id": key.id, "public_key": base64.b64encode(key.public).decode()}
