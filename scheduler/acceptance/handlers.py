"""Table of the handlers, by verb; ``scheduler/queries/reads.py`` has the table of the reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from scheduler.acceptance import (
    access,
    backends,
    operations,
    quotas,
    share_types,
    shares,
    snapshots,
)
from scheduler.acceptance import security_services as security
from scheduler.acceptance import share_networks as networks
from scheduler.acceptance import share_servers as servers
from scheduler.acceptance.accept import Handler

HANDLERS: Final[Mapping[str, Handler]] = {
    "create_share": shares.create,
    "delete_share": shares.delete,
    "extend_share": shares.extend,
    "create_snapshot": snapshots.create,
    "delete_snapshot": snapshots.delete,
    "allow_access": access.allow,
    "deny_access": access.deny,
    "create_share_network": networks.create,
    "update_share_network": networks.change,
    "delete_share_network": networks.delete,
    "publish_share_network": networks.publish,
    "unpublish_share_network": networks.unpublish,
    "set_default_share_network": networks.set_default,
    "unset_default_share_network": networks.unset_default,
    "cancel_operation": operations.cancel,
    "retry_operation": operations.retry,
    "give_up_operation": operations.give_up,
    "audit_backend": backends.audit_backend,
    "create_security_service": security.create,
    "update_security_service": security.change,
    "delete_security_service": security.delete,
    "add_security_service": security.add,
    "remove_security_service": security.remove,
    "create_share_type": share_types.create_share_type,
    "delete_share_type": share_types.delete_share_type,
    "set_quota": quotas.set_limits,
    "unset_quota": quotas.unset_limits,
    "delete_share_server": servers.delete,
    "ensure_share_servers": servers.ensure,
    "disable_backend": backends.disable_backend,
    "enable_backend": backends.enable_backend,
}
