"""Table of the functions that answer read requests, by verb."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from scheduler.queries.access import list_access
from scheduler.queries.backends import list_backends, show_backend
from scheduler.queries.base import Read
from scheduler.queries.operations import list_operations, show_operation
from scheduler.queries.quotas import show_quota
from scheduler.queries.security_services import (
    list_security_services,
    show_sealing_key,
    show_security_service,
)
from scheduler.queries.share_networks import list_share_networks, show_share_network
from scheduler.queries.share_servers import list_share_servers, show_share_server
from scheduler.queries.share_types import list_share_types, show_share_type
from scheduler.queries.shares import list_shares, show_share
from scheduler.queries.snapshots import list_snapshots, show_snapshot

READS: Final[Mapping[str, Read]] = {
    read.__name__: read
    for read in (
        *(show_share, list_shares, show_snapshot, list_snapshots, list_access),
        *(show_share_network, list_share_networks, show_share_type, list_share_types),
        *(show_security_service, list_security_services, show_sealing_key),
        *(show_share_server, list_share_servers, show_operation, list_operations),
        *(show_backend, list_backends, show_quota),
    )
}
"""The function for each verb of :class:`~scheduler.requests.base.Kind` READ."""
