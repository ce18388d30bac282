"""Share networks: conversion of rows to values."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Connection,
    Row,
)

from worker.db.shares import _NETWORK
from worker.db.statuses import row_of
from worker.errors import ObjectKind
from worker.model import (
    NetworkKind,
    ShareNetwork,
)


def network_of(row: Row[Any]) -> ShareNetwork:
    """Return the value of a share network's row, as helpers see it."""
    return ShareNetwork(
        id=row.id,
        project_id=row.project_id,
        kind=NetworkKind(row.kind),
        name=row.name,
        description=row.description,
        neutron_net_id=row.neutron_net_id,
        neutron_subnet_id=row.neutron_subnet_id,
        nova_network_id=row.nova_network_id,
        flat_network_ip_pool=tuple(row.flat_network_ip_pool or ()),
        flat_network_subnet=row.flat_network_subnet,
        flat_network_gateway=row.flat_network_gateway,
        dhcp_endpoint=row.dhcp_endpoint,
        cidr=row.cidr,
        is_public=row.is_public,
        security_key=row.security_key,
    )


def network(connection: Connection, network_id: str) -> ShareNetwork:
    """Return a share network for a step; raise when it no longer exists."""
    return network_of(row_of(connection, _NETWORK, network_id, ObjectKind.SHARE_NETWORK))
