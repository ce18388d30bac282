"""Build and delete share servers: allocate_network, get_share_server and their compensations.

Concurrent creates of a project, share network and backend share one server. Only one of them, the
builder, allocates the network and builds the server; the others wait. A compensation releases its
own operation's reference, and the one that releases the last reference deletes the server
(docs/explanation/engine.md, rule 8).
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row

from worker.config import Config
from worker.db import share_networks, shares
from worker.db.operations import store as operations
from worker.db.share_servers import store as servers
from worker.db.share_servers.limits import Limits
from worker.db.share_servers.store import ServerKey
from worker.engine.job import Job, StepTransaction
from worker.engine.saga import Action, OnCommit, StepCommitted, StepResult, StepWaiting
from worker.errors import ErrorCode, Fatal, ObjectKind, StepError
from worker.failpoints import failpoint
from worker.model import ServerStatus, ShareNetwork, ShareServer, ShareServerDetails
from worker.tasks import repairs
from worker.tasks.security import services_of

RECHECK_SECONDS = 60.0
"""Seconds after which a waiting create checks the server again, in case a wake-up was lost."""
REPAIR_RECHECK_SECONDS = 1.0
"""Seconds after which a deletion checks again whether a repair of the server has ended."""


def limits_of(config: Config, backend: str) -> Limits:
    """Return how many shares, and how many GiB, one share server of a backend may hold."""
    settings = config.backend(backend)
    return Limits(settings.max_shares_per_share_server, settings.max_share_server_size)


def _allocate_network(job: Job) -> StepResult:
    share_id = job.operation.resource_id
    joined = job.transaction(_join)
    if isinstance(joined, StepWaiting | StepCommitted):
        return joined
    server, network = joined
    failpoint("allocate_network.after_join")
    info = job.manager.allocate_network(job.context, server, network)

    def commit(tx: StepTransaction) -> None:
        servers.allocated(tx.connection, server.id, info)
        shares.attach_server(tx.connection, share_id, server.id)

    return commit


def _join(tx: StepTransaction) -> tuple[ShareServer, ShareNetwork] | StepWaiting | StepCommitted:
    """Add the share to a server.

    Returns the server with its share network if this operation has to build it, a
    :class:`StepCommitted` if the server is active, and a :class:`StepWaiting` while another
    operation builds it.
    """
    operation = tx.operation
    share = shares.share_row(tx.connection, operation.resource_id)
    network = share_networks.network(tx.connection, share.share_network_id)
    key = ServerKey(share.project_id, share.share_network_id, share.backend, network.security_key)
    preferred = (
        shares.server_of_snapshot(tx.connection, share.snapshot_id) if share.snapshot_id else None
    )
    joined = servers.join(
        tx.connection,
        key,
        share_id=share.id,
        gib=share.size,
        operation_id=operation.id,
        accepted_at=operation.accepted_at,
        limits=limits_of(tx.config, share.backend),
        tolerated_failures=tx.config.engine.builder_failures,
        preferred=preferred or "",
    )
    if joined is not None and joined.is_builder:
        return joined.server, network
    if joined is not None and joined.server.status is ServerStatus.ACTIVE:
        shares.attach_server(tx.connection, share.id, joined.server.id)
        return StepCommitted(tx)
    return StepWaiting(
        f"The share server for share network {share.share_network_id} is being built.",
        waits_for=key.waits_for,
        recheck=RECHECK_SECONDS,
    )


def _get_share_server(job: Job) -> OnCommit | None:
    with job.reading() as connection:
        row = servers.referred(connection, job.operation.resource_id)
    if row is None:
        raise _lost_server(job)
    server = servers.server_of(row)
    if server.status is ServerStatus.ACTIVE:
        return None
    details = served_by(job, server)

    def commit(tx: StepTransaction) -> None:
        key = servers.built(tx.connection, server.id, details)
        tx.wake(key.waits_for)

    return commit


def served_by(job: Job, server: ShareServer) -> ShareServerDetails:
    """Ask the compute helper for a server with its allocated network; return its details.

    The helper reuses whatever exists of the server.
    """
    assert server.network_info is not None, "allocate_network comes first"
    assert server.share_network_id is not None, "a server is made for a share network"
    with job.reading() as connection:
        network = share_networks.network(connection, server.share_network_id)
        security_services = services_of(job.runtime.config, connection, server)
    return job.manager.get_share_server(
        job.context, server, network, server.network_info, security_services
    )


def _lost_server(job: Job) -> Fatal:
    share = job.operation.resource_id
    return Fatal(
        f"Share {share} refers to no share server any more.",
        object=ObjectKind.SHARE.ref(share),
        code=ErrorCode.SHARE_SERVER_FAILED,
    )


def _delete_share_server(job: Job) -> StepResult:
    server = job.transaction(_server_to_delete)
    if isinstance(server, StepWaiting):
        return server
    if server is not None:
        failpoint("delete_share_server.after_release")
        job.manager.delete_share_server(job.context, server)
    return None


def _deallocate_network(job: Job) -> StepResult:
    server = job.transaction(_server_to_delete)
    if isinstance(server, StepWaiting):
        return server
    if server is not None:
        failpoint("deallocate_network.after_release")
        job.manager.deallocate_network(job.context, server)

    def commit(tx: StepTransaction) -> None:
        if server is not None:
            _forget(tx, server)
        if job.operation.resource_kind == "share_server":
            tx.result = {"id": job.operation.resource_id, "status": "deleted"}

    return commit


def _forget(tx: StepTransaction, server: ShareServer) -> None:
    """Remove the server's row, but keep that of a failed build for a while, with its error."""
    error = tx.operation.error
    never_built = tx.operation.undoing and server.details is None
    if never_built and error is not None and error["code"] != ErrorCode.CANCELLED:
        servers.mark_build_failed(tx.connection, server.id, error)
    else:
        servers.remove(tx.connection, server.id)
    tx.retry_failed("share_server", server.id)


def _server_to_delete(tx: StepTransaction) -> ShareServer | StepWaiting | None:
    """Release the operation's reference; return the server if this operation has to delete it.

    Both compensations begin with this, because either may be the first: a failure in
    allocate_network is compensated by deallocate_network alone. The result is a
    :class:`StepWaiting` while a repair of the server runs.
    """
    row = release_reference(tx)
    if row is None:
        return None
    return _repair_to_await(tx, row.id) or servers.server_of(row)


def release_reference(tx: StepTransaction) -> Row[Any] | None:
    """Release the operation's reference; return the server's row if it has to be deleted now."""
    operation = tx.operation
    row = servers.deleted_by(tx.connection, operation.id)
    if row is not None or operation.resource_kind != "share":
        return row
    row = servers.fail_build(tx.connection, operation.id)
    if row is not None:
        _wake_next_builder(tx, row)
        return row
    released = servers.release(tx.connection, operation.resource_id, deleter_id=operation.id)
    mine = released is not None and released.deleter_id == operation.id
    return released if mine else None


def _repair_to_await(tx: StepTransaction, server_id: str) -> StepWaiting | None:
    """Cancel a running repair of the server, and wait for its end: it could rebuild the server."""
    live = operations.live(tx.connection, "share_server", server_id)
    if live is None or live.id == tx.operation.id:
        return None
    because = f"The share server {server_id} is being deleted."
    resource = ("share_server", server_id)
    tx.dispatches.extend(repairs.cancel(tx.connection, tx.config, resource, because))
    return StepWaiting(
        f"Operation {live.id} on share server {server_id} has not ended yet.",
        waits_for=f"share_server:{server_id}",
        recheck=REPAIR_RECHECK_SECONDS,
    )


def _wake_next_builder(tx: StepTransaction, row: Row[Any]) -> None:
    """Wake one waiting create to build a new server; after too many failures, fail all of them."""
    key = servers.key_of(row)
    error = dict(tx.operation.error or {})
    if error.get("code") == ErrorCode.CANCELLED:
        tx.wake(key.waits_for, limit=1)
        return
    reason = {
        "code": str(ErrorCode.SHARE_SERVER_FAILED),
        "message": f"The share server could not be built. {error.get('message', '')}",
        "object": ObjectKind.SHARE_SERVER.ref(row.id),
        "field": "",
    }
    failures = servers.count_failure(tx.connection, key, reason)
    if failures < tx.config.engine.builder_failures:
        tx.wake(key.waits_for, limit=1)
    else:
        tx.wake(key.waits_for, cancel_reason=reason)


def server_not_deleted(job: Job, error: StepError) -> OnCommit:
    """Mark the server ``error_deleting``: its clean-up has been failing for too long."""

    def commit(tx: StepTransaction) -> None:
        servers.mark(
            tx.connection,
            job.operation.resource_id,
            ServerStatus.ERROR_DELETING,
            error.to_json(),
        )

    return commit


allocate_network = Action("allocate_network", _allocate_network, timeout=120)
deallocate_network = Action("deallocate_network", _deallocate_network, timeout=120)
get_share_server = Action("get_share_server", _get_share_server, timeout=300)
delete_share_server = Action("delete_share_server", _delete_share_server, timeout=300)
