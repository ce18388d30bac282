"""Define the sagas: the steps of each operation. Read this module first.

A saga lists its steps in order. Each step has a compensation or the reason why it has none. The
actions are Celery tasks named ``sharewright.<name>``, as Flower shows them.

To change the steps of a saga, add it with its next version and keep the old one: unfinished
operations carry the old version, and an older release that runs at the same time accepts more.
"""

from __future__ import annotations

from typing import Final

from worker.engine.saga import Saga, Sagas, forward_only, undoable
from worker.tasks import access, audit, ensure, servers, shares, snapshots
from worker.tasks.clean_up import SAGA as CLEAN_UP
from worker.tasks.orphans import NAME as AUDIT
from worker.tasks.repairs import ENSURE_SERVER, RESTART_SERVER
from worker.tasks.repairs import ENSURE_SHARE as ENSURE_ONE

ALLOCATE_NETWORK: Final = undoable(
    servers.allocate_network, compensation=servers.deallocate_network
)
GET_SHARE_SERVER: Final = undoable(
    servers.get_share_server, compensation=servers.delete_share_server
)
CREATE_SHARE: Final = undoable(shares.create_share, compensation=shares.delete_share)
CREATE_SNAPSHOT: Final = undoable(snapshots.create_snapshot, compensation=snapshots.delete_snapshot)
DELETE_SHARE: Final = forward_only(
    shares.delete_share,
    because="deleted data cannot be brought back",
    on_failure=shares.share_not_deleted,
    keeps_trying=True,
)
DELETE_SNAPSHOT: Final = forward_only(
    snapshots.delete_snapshot,
    because="deleted data cannot be brought back",
    on_failure=snapshots.snapshot_not_deleted,
    keeps_trying=True,
)
EXTEND_SHARE: Final = forward_only(
    shares.extend_share,
    because="a client may already use the new space; the real size is read back instead",
    on_failure=shares.extend_failed,
)
ALLOW_ACCESS: Final = forward_only(
    access.update_access,
    because="the set may contain other changes; the rule is marked as failed instead",
    on_failure=access.access_failed,
)
DENY_ACCESS: Final = forward_only(
    access.update_access,
    because="a denied client must not get back in",
    on_failure=access.access_failed,
    keeps_trying=True,
)
DELETE_SHARE_SERVER: Final = forward_only(
    servers.delete_share_server,
    because="a deleted server cannot be brought back",
    on_failure=servers.server_not_deleted,
    keeps_trying=True,
)
DEALLOCATE_NETWORK: Final = forward_only(
    servers.deallocate_network,
    because="a released address may already be in use again",
    on_failure=servers.server_not_deleted,
    keeps_trying=True,
)
AUDIT_BACKEND: Final = forward_only(
    audit.audit_backend,
    because="what it removes belongs to no object",
    on_failure=audit.audit_failed,
)
ENSURE_SHARE_SERVER: Final = forward_only(
    ensure.ensure_share_server,
    because="clients may already use the server",
    on_failure=ensure.server_not_ensured,
)
ENSURE_SHARES: Final = forward_only(
    ensure.ensure_shares,
    because="each share has an operation of its own",
    on_failure=ensure.server_not_ensured,
)
ENSURE_SHARE: Final = forward_only(
    ensure.ensure_share,
    because="clients may already use the share",
    on_failure=ensure.share_not_ensured,
)

ALL: Final = (
    Saga(
        "create_share",
        (ALLOCATE_NETWORK, GET_SHARE_SERVER, CREATE_SHARE),
        failed=shares.create_failed,
    ),
    Saga("create_share_single_svm", (CREATE_SHARE,), failed=shares.create_failed),
    Saga("delete_share", (DELETE_SHARE,)),
    Saga("extend_share", (EXTEND_SHARE,)),
    Saga("allow_access", (ALLOW_ACCESS,)),
    Saga("deny_access", (DENY_ACCESS,)),
    Saga("create_snapshot", (CREATE_SNAPSHOT,), failed=snapshots.create_failed),
    Saga("delete_snapshot", (DELETE_SNAPSHOT,)),
    Saga(CLEAN_UP, (DELETE_SHARE_SERVER, DEALLOCATE_NETWORK)),
    Saga(AUDIT, (AUDIT_BACKEND,)),
    Saga(ENSURE_SERVER, (ENSURE_SHARE_SERVER, ENSURE_SHARES)),
    Saga(RESTART_SERVER, (ENSURE_SHARE_SERVER,)),
    Saga(ENSURE_ONE, (ENSURE_SHARE,)),
)
SAGAS: Final = Sagas(ALL)
ACTIONS: Final = SAGAS.actions
