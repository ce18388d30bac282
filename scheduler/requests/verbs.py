"""Table of all verbs."""

from __future__ import annotations

from typing import Final

from scheduler.requests.access import AllowAccess, DenyAccess, ListAccess
from scheduler.requests.backends import AuditBackend, BackendOnly, DisableBackend, ListBackends
from scheduler.requests.base import Kind, Verb
from scheduler.requests.operations import ListOperations, OperationOnly
from scheduler.requests.quotas import SetQuota, ShowQuota, UnsetQuota
from scheduler.requests.security_services import (
    AddSecurityService,
    CreateSecurityService,
    ListSecurityServices,
    RemoveSecurityService,
    SecurityServiceOnly,
    ShowSealingKey,
    UpdateSecurityService,
)
from scheduler.requests.share_networks import (
    CreateShareNetwork,
    ListShareNetworks,
    ShareNetworkOnly,
    UpdateShareNetwork,
)
from scheduler.requests.share_servers import EnsureShareServers, ListShareServers, ShareServerOnly
from scheduler.requests.share_types import CreateShareType, ListShareTypes, ShareTypeOnly
from scheduler.requests.shares import CreateShare, ExtendShare, ListShares, ShareOnly
from scheduler.requests.snapshots import CreateSnapshot, ListSnapshots, SnapshotOnly

_ALL: Final = (
    Verb("create_share", CreateShare, Kind.CHAIN),
    Verb("delete_share", ShareOnly, Kind.CHAIN),
    Verb("extend_share", ExtendShare, Kind.CHAIN),
    Verb("show_share", ShareOnly, Kind.READ),
    Verb("list_shares", ListShares, Kind.READ),
    Verb("create_snapshot", CreateSnapshot, Kind.CHAIN),
    Verb("delete_snapshot", SnapshotOnly, Kind.CHAIN),
    Verb("show_snapshot", SnapshotOnly, Kind.READ),
    Verb("list_snapshots", ListSnapshots, Kind.READ),
    Verb("allow_access", AllowAccess, Kind.CHAIN),
    Verb("deny_access", DenyAccess, Kind.CHAIN),
    Verb("list_access", ListAccess, Kind.READ),
    Verb("create_share_network", CreateShareNetwork, Kind.ROW),
    Verb("update_share_network", UpdateShareNetwork, Kind.ROW),
    Verb("delete_share_network", ShareNetworkOnly, Kind.ROW),
    Verb("show_share_network", ShareNetworkOnly, Kind.READ),
    Verb("list_share_networks", ListShareNetworks, Kind.READ),
    Verb("publish_share_network", ShareNetworkOnly, Kind.ROW, admin=True),
    Verb("unpublish_share_network", ShareNetworkOnly, Kind.ROW, admin=True),
    Verb("set_default_share_network", ShareNetworkOnly, Kind.ROW, admin=True),
    Verb("unset_default_share_network", ShareNetworkOnly, Kind.ROW, admin=True),
    Verb("create_security_service", CreateSecurityService, Kind.ROW),
    Verb("update_security_service", UpdateSecurityService, Kind.ROW),
    Verb("delete_security_service", SecurityServiceOnly, Kind.ROW),
    Verb("show_security_service", SecurityServiceOnly, Kind.READ),
    Verb("list_security_services", ListSecurityServices, Kind.READ),
    Verb("add_security_service", AddSecurityService, Kind.ROW),
    Verb("remove_security_service", RemoveSecurityService, Kind.ROW),
    Verb("show_sealing_key", ShowSealingKey, Kind.READ),
    Verb("create_share_type", CreateShareType, Kind.ROW, admin=True),
    Verb("delete_share_type", ShareTypeOnly, Kind.ROW, admin=True),
    Verb("show_share_type", ShareTypeOnly, Kind.READ),
    Verb("list_share_types", ListShareTypes, Kind.READ),
    Verb("show_share_server", ShareServerOnly, Kind.READ),
    Verb("list_share_servers", ListShareServers, Kind.READ),
    Verb("delete_share_server", ShareServerOnly, Kind.CHAIN, admin=True),
    Verb("ensure_share_servers", EnsureShareServers, Kind.ROW, admin=True),
    Verb("show_quota", ShowQuota, Kind.READ),
    Verb("set_quota", SetQuota, Kind.ROW, admin=True),
    Verb("unset_quota", UnsetQuota, Kind.ROW, admin=True),
    Verb("show_operation", OperationOnly, Kind.READ),
    Verb("list_operations", ListOperations, Kind.READ),
    Verb("cancel_operation", OperationOnly, Kind.ROW, admin=True),
    Verb("retry_operation", OperationOnly, Kind.ROW, admin=True),
    Verb("give_up_operation", OperationOnly, Kind.ROW, admin=True),
    Verb("audit_backend", AuditBackend, Kind.CHAIN, admin=True),
    Verb("show_backend", BackendOnly, Kind.READ, admin=True),
    Verb("list_backends", ListBackends, Kind.READ, admin=True),
    Verb("disable_backend", DisableBackend, Kind.ROW, admin=True),
    Verb("enable_backend", BackendOnly, Kind.ROW, admin=True),
)
VERBS: Final = {verb.name: verb for verb in _ALL}
