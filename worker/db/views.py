"""Views: the columns of each document that producers and operators see.

A view is an allow-list: a column that is added to a table appears in no document until it is added
here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Column, Row, Table

from worker.db.documents import moment
from worker.db.tables import audits
from worker.db.tables import main as tables

_TIMES: Final = frozenset(
    {
        *("created_at", "updated_at", "accepted_at", "started_at", "finished_at"),
        *("queued_at", "reported_at", "received_at", "replayed_at", "first_seen", "last_seen"),
    }
)
_DESCRIBED: Final = ("id", "project_id", "name", "description", "created_at", "updated_at")


@dataclass(frozen=True, slots=True)
class View:
    """Columns of a table that its rows' documents contain, and the allowed keys of JSON columns."""

    table: Table
    names: tuple[str, ...]
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[Column[Any], ...]:
        """The columns that a query must select for this document."""
        return tuple(self.table.c[name] for name in self.names)

    def __call__(self, row: Row[Any]) -> dict[str, Any]:
        """Return a row's document; times are ISO 8601."""
        return {name: self._value(name, getattr(row, name)) for name in self.names}

    def _value(self, name: str, value: Any) -> Any:
        if name in _TIMES:
            return moment(value)
        if name in self.keys and value is not None:
            return {key: value.get(key) for key in self.keys[name]}
        return value


SHARE: Final = View(
    tables.shares,
    (
        *(*_DESCRIBED, "metadata", "size", "share_proto", "share_type_id", "share_network_id"),
        *("share_server_id", "snapshot_id", "backend", "pool", "status", "export_locations"),
        "error",
    ),
)
SNAPSHOT: Final = View(
    tables.snapshots, (*_DESCRIBED, "metadata", "share_id", "size", "status", "error")
)
ACCESS_RULE: Final = View(
    tables.access_rules,
    (
        *("id", "share_id", "project_id", "access_type", "access_to", "access_level", "state"),
        *("created_at", "updated_at"),
    ),
)
SHARE_TYPE: Final = View(tables.share_types, (*_DESCRIBED, "extra_specs"))
SHARE_NETWORK: Final = View(
    tables.share_networks,
    (
        *(*_DESCRIBED, "metadata", "kind", "neutron_net_id", "neutron_subnet_id"),
        *("nova_network_id", "flat_network_ip_pool", "flat_network_subnet"),
        *("flat_network_gateway", "dhcp_endpoint", "cidr", "is_public", "is_default"),
    ),
)
SECURITY_SERVICE: Final = View(
    tables.security_services,
    (
        *(*_DESCRIBED, "type", "dns_ip", "server", "domain", "ou", "user"),
        "password_key_id",
    ),
)
_SHARE_SERVER: Final = (
    *("id", "project_id", "share_network_id", "backend", "status", "shares", "gib"),
    *("network_info", "error", "created_at", "updated_at"),
)
SHARE_SERVER: Final = View(
    tables.share_servers,
    _SHARE_SERVER,
    {
        "network_info": (
            *("cidr", "netmask", "prefix_length", "ip_version", "broadcast", "gateway"),
            *("addresses", "segmentation_type", "segmentation_id", "mtu"),
        )
    },
)
"""A share server as its tenant sees it: the addresses for clients, and no management data."""
SHARE_SERVER_FOR_ADMINISTRATORS: Final = View(
    tables.share_servers, (*_SHARE_SERVER, "server_id", "details")
)
_OPERATION: Final = (
    *("id", "project_id", "user_id", "request_id", "verb", "resource_kind", "resource_id"),
    *("backend", "state", "phase", "undoing", "task", "attempts", "waits_for", "redrives"),
    *("error", "result", "accepted_at", "finished_at"),
)
OPERATION: Final = View(tables.operations, _OPERATION)
"""An operation without its payload, which may contain secrets of verbs added later."""
OPERATION_FOR_ADMINISTRATORS: Final = View(
    tables.operations, (*_OPERATION, "worker", "queue", "queued_at")
)
_STEP: Final = ("task", "outcome", "attempt", "started_at", "finished_at", "message")
STEP: Final = View(tables.operation_steps, _STEP)
STEP_FOR_ADMINISTRATORS: Final = View(tables.operation_steps, (*_STEP, "worker"))
BACKEND: Final = View(
    tables.backends,
    ("name", "enabled", "disabled_reason", "reported_at", "report_error", "report"),
)
STORAGE_POOL: Final = View(
    tables.storage_pools, ("name", "total_gib", "free_gib", "allocated_gib", "shares")
)
FINDING: Final = View(
    audits.audit_findings,
    (
        *("backend", "part", "problem", "kind", "thing", "owner_kind", "owner_id", "times"),
        *("first_seen", "last_seen", "created_at", "error"),
    ),
)
DEAD_LETTER: Final = View(
    tables.dead_letters, ("id", "queue", "reason", "size", "received_at", "replayed_at")
)
DEAD_LETTER_WITH_BODY: Final = View(tables.dead_letters, (*DEAD_LETTER.names, "headers", "body"))
