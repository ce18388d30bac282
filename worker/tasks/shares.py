"""Create, delete and extend shares."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import Connection, Row, select

from worker.db import capacity, shares, snapshots, views
from worker.db.documents import plain
from worker.db.share_servers import store as servers
from worker.db.tables import main as tables
from worker.engine.job import Job, StepTransaction
from worker.engine.saga import Action, OnCommit, Unsettled
from worker.errors import ErrorCode, Fatal, NotReady, ObjectKind, StepError
from worker.model import ServerStatus, ShareServer, ShareStatus, Snapshot
from worker.tasks.clean_up import start_clean_up
from worker.tasks.security import with_services
from worker.tasks.servers import limits_of


def share_and_server(
    job: Job, connection: Connection, share_id: str
) -> tuple[Row[Any], ShareServer | None]:
    """Return a share's row and its share server, with security services; None in ``single_svm``."""
    row, server = shares.share_and_server(connection, share_id)
    if server is not None and server.security_key:
        server = with_services(job.runtime.config, connection, server)
    return row, server


def _source(connection: Connection, row: Row[Any]) -> Snapshot | None:
    if row.snapshot_id is None:
        return None
    source = connection.execute(
        select(tables.snapshots).where(tables.snapshots.c.id == row.snapshot_id)
    ).one()
    return snapshots.snapshot_of(source)


def _create_share(job: Job) -> OnCommit:
    with job.reading() as connection:
        row, server = share_and_server(job, connection, job.operation.resource_id)
        snapshot = _source(connection, row)
    share = shares.share_of(row)
    locations = job.manager.create_share(job.context, share, snapshot, server)

    def commit(tx: StepTransaction) -> None:
        row = shares.set_share(
            tx.connection,
            share.id,
            ShareStatus.AVAILABLE,
            export_locations=[plain(location) for location in locations],
        )
        tx.result = views.SHARE(row)

    return commit


def _delete_share(job: Job) -> OnCommit | None:
    if is_gone(job):
        return _answer_deleted
    with job.reading() as connection:
        row, server = share_and_server(job, connection, job.operation.resource_id)
    on_servers = job.manager.backend.mode.has_share_servers
    # A share without a server has nothing on external systems.
    if server is not None or not on_servers:
        job.manager.delete_share(job.context, shares.share_of(row), server)
    if job.operation.undoing:
        return None

    def commit(tx: StepTransaction) -> None:
        forget(tx, row)
        _answer_deleted(tx)

    return commit


def is_gone(job: Job) -> bool:
    """Return whether the share was deleted while this failed operation was still retried."""
    if job.operation.error is None:
        return False
    with job.reading() as connection:
        return not shares.has_share(connection, job.operation.resource_id)


def _answer_deleted(tx: StepTransaction) -> None:
    if not tx.operation.undoing:
        tx.result = {"id": tx.operation.resource_id, "status": "deleted"}


def forget(tx: StepTransaction, row: Row[Any]) -> None:
    """Remove the share's row and its reference to its server.

    An operation of its own then cleans up the server if it is unused and may not be kept idle.
    """
    interval = tx.config.engine.unused_share_server_cleanup_interval
    clean_up = str(uuid.uuid4())
    released = servers.release(tx.connection, row.id, deleter_id=clean_up, idle_after=interval > 0)
    shares.remove_share(tx.connection, row.id)
    tx.retry_failed("share", row.id)
    if released is not None and released.deleter_id == clean_up:
        tx.dispatches.extend(start_clean_up(tx.connection, tx.config, tx.sagas, released, clean_up))


def share_not_deleted(job: Job, error: StepError) -> OnCommit:
    """Mark the share ``error_deleting``: its deletion has been failing for too long."""

    def commit(tx: StepTransaction) -> None:
        shares.set_share(
            tx.connection,
            job.operation.resource_id,
            ShareStatus.ERROR_DELETING,
            error=error.to_json(),
        )

    return commit


def create_failed(tx: StepTransaction, error: dict[str, str], undone: bool) -> None:  # noqa: FBT001 - a hook of the engine
    """Mark the share, and a server that is left, as failed after a create."""
    shares.share_failed(tx.connection, tx.operation.resource_id, error, undone=undone)
    left = servers.deleted_by(tx.connection, tx.operation.id)
    if left is not None:
        servers.mark(tx.connection, left.id, ServerStatus.ERROR, error)


def _extend_share(job: Job) -> OnCommit | None:
    if job.operation.error is not None:
        return _settle_size(job)
    size = int(job.operation.payload["new_size"])

    def begin(tx: StepTransaction) -> tuple[Row[Any], ShareServer | None]:
        row, server = share_and_server(job, tx.connection, job.operation.resource_id)
        _check_larger(row, size)
        _reserve(tx, row, size)
        _take_room(tx, row, size)
        shares.set_share(tx.connection, row.id, ShareStatus.EXTENDING)
        return row, server

    row, server = job.transaction(begin)
    share = shares.share_of(row)
    job.manager.extend_share(job.context, share, size, server)

    def commit(tx: StepTransaction) -> None:
        extended = shares.set_share(tx.connection, share.id, ShareStatus.AVAILABLE, size=size)
        tx.result = views.SHARE(extended)

    return commit


def _check_larger(row: Row[Any], size: int) -> None:
    if size <= row.size and row.status != ShareStatus.EXTENDING:
        raise Fatal(
            f"Share {row.id} has {row.size} GiB already; the new size must be larger.",
            object=ObjectKind.SHARE.ref(row.id),
            field="new_size",
            code=ErrorCode.INVALID_REQUEST,
        )


def _reserve(tx: StepTransaction, row: Row[Any], size: int) -> None:
    missing = size - row.allocated_gib
    ratio = tx.config.engine.max_over_subscription_ratio
    if missing > 0 and not capacity.reserve_more(tx.connection, row.id, missing, ratio):
        raise Fatal(
            f"Pool {row.pool} of backend {row.backend} has less than {missing} GiB free; share "
            f"{row.id} needs that much more.",
            object=ObjectKind.SHARE.ref(row.id),
            field="new_size",
            code=ErrorCode.NO_VALID_BACKEND,
        )


def _take_room(tx: StepTransaction, row: Row[Any], size: int) -> None:
    limits = limits_of(tx.config, row.backend)
    if not servers.resize(tx.connection, row.id, size, limits):
        raise Fatal(
            f"The share server of share {row.id} may hold {limits.gib} GiB in total; {size} GiB "
            f"for this share would exceed that. Create a new share of that size instead: it gets "
            f"another server.",
            object=ObjectKind.SHARE.ref(row.id),
            field="new_size",
            code=ErrorCode.NO_VALID_BACKEND,
        )


def extend_failed(job: Job, error: StepError) -> OnCommit | Unsettled:
    """Read back the share's real size after an extend failed, and return how to write it.

    While the size is unknown, the share is in ``error`` and the larger size stays reserved.
    """
    with job.reading() as connection:
        row = shares.share_row(connection, job.operation.resource_id)
    if row.status != ShareStatus.EXTENDING:  # the extend never began, or the share is being deleted
        return lambda tx: _return_reserved(tx, row, row.size)
    try:
        return _set_real_size(row, _real_size(job, row))
    except (StepError, NotReady) as second:
        problem = {
            **error.to_json(),
            "message": f"{error.message} The share's size is unknown until it can be read: "
            f"{second.message}",
        }

    def commit(tx: StepTransaction) -> None:
        shares.set_share_if_allowed(tx.connection, row.id, ShareStatus.ERROR, error=problem)

    return Unsettled(commit)


def _settle_size(job: Job) -> OnCommit | None:
    """Read the share's size after a failed extend, once the driver can tell it."""
    if is_gone(job):
        return None
    with job.reading() as connection:
        row = shares.share_row(connection, job.operation.resource_id)
    if row.status not in _MAY_BE_SETTLED:
        return None  # the share is being deleted or extended, and that operation sets its size
    return _set_real_size(row, _real_size(job, row))


_MAY_BE_SETTLED = (ShareStatus.AVAILABLE, ShareStatus.ERROR)


def _real_size(job: Job, row: Row[Any]) -> int:
    with job.reading() as connection:
        _, server = share_and_server(job, connection, row.id)
    return job.manager.share_size(job.context, shares.share_of(row), server)


def _set_real_size(row: Row[Any], real: int) -> OnCommit:
    def commit(tx: StepTransaction) -> None:
        if shares.set_size(tx.connection, row.id, ShareStatus(row.status), real):
            _return_reserved(tx, row, real)

    return commit


def _return_reserved(tx: StepTransaction, row: Row[Any], real: int) -> None:
    if row.allocated_gib > real:
        capacity.return_some(tx.connection, row.id, row.allocated_gib - real)
        servers.resize(tx.connection, row.id, real)


create_share = Action("create_share", _create_share, timeout=300)
delete_share = Action("delete_share", _delete_share, timeout=300)
extend_share = Action("extend_share", _extend_share, timeout=300)
