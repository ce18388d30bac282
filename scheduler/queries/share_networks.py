"""Queries of share networks."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Connection,
    select,
)

from scheduler.queries.base import list_rows, mine, show
from scheduler.requests.base import Context
from scheduler.requests.share_networks import ListShareNetworks, ShareNetworkOnly
from worker.config import Config
from worker.db import views
from worker.db.documents import network_info, server_details
from worker.db.tables.main import (
    share_network_security_services,
    share_servers,
)
from worker.errors import ObjectKind
from worker.model import ServerStatus


def show_share_network(
    connection: Connection, request: ShareNetworkOnly, _config: Config
) -> dict[str, Any]:
    """Return one share network, the project's own or a public one, with its attachments."""
    network_id, context = request.share_network_id, request.context
    found = show(connection, views.SHARE_NETWORK, ObjectKind.SHARE_NETWORK, context, network_id)
    a = share_network_security_services.c
    added = connection.execute(
        select(a.security_service_id, a.type)
        .where(a.share_network_id == network_id)
        .order_by(a.type)
    )
    return {
        **found,
        "security_services": [{"id": row.security_service_id, "type": row.type} for row in added],
        "attachments": _attachments(connection, network_id, context),
    }


def _attachments(connection: Connection, network_id: str, context: Context) -> list[dict[str, Any]]:
    """Return the networks of the project's share servers, to which clients must be attached."""
    s = share_servers.c
    servers = connection.execute(
        select(s.backend, s.network_info, s.details)
        .where(
            s.share_network_id == network_id,
            s.status == ServerStatus.ACTIVE.value,
            mine(share_servers, context),
        )
        .order_by(s.backend, s.created_at)
    )
    different: list[dict[str, Any]] = []
    for server in servers:
        info, details = network_info(server.network_info), server_details(server.details)
        assert info is not None, "an active server has its addresses"
        assert details is not None, "an active server has its details"
        attachment = {
            "backend": server.backend,
            "cidr": info.cidr,
            "gateway": info.gateway,
            "segmentation_type": info.segmentation_type,
            "segmentation_id": info.segmentation_id,
            "mtu": info.mtu,
            "bridge": details.attributes.get("bridge"),
        }
        if attachment not in different:
            different.append(attachment)
    return different


def list_share_networks(
    connection: Connection, request: ListShareNetworks, _config: Config
) -> dict[str, Any]:
    """Return a page of share networks, the project's own and public ones."""
    filters = request.model_dump(include={"name", "kind"}, mode="json")
    return list_rows(connection, views.SHARE_NETWORK, "share_networks", request, filters)
