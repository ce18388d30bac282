"""Restore share servers and exports to what the database says, for example after a reboot.

The compute helper is asked for the server again, with its allocated network. Then each share on
the server gets an operation of its own, which is queued with the share's other operations and so
never runs at the same time as its deletion.
"""

from __future__ import annotations

import uuid
from functools import partial
from typing import Any

from sqlalchemy import Row

from worker.db import access_rules, shares, views
from worker.db.documents import plain
from worker.db.share_servers import health
from worker.db.share_servers import store as servers
from worker.engine.accept import Begin
from worker.engine.job import Job, StepTransaction
from worker.engine.saga import Action, OnCommit
from worker.errors import StepError
from worker.failpoints import failpoint
from worker.model import AccessRule, ServerStatus, ShareServer, ShareStatus
from worker.tasks.repairs import ENSURE_SHARE, Requester, start
from worker.tasks.servers import served_by
from worker.tasks.shares import share_and_server

_SERVED = {ShareStatus.AVAILABLE.value, ShareStatus.ERROR.value}


def _server(job: Job) -> ShareServer | None:
    """Return the operation's share server; None if it is the predefined server or deleted."""
    if job.operation.resource_kind == "backend":
        return None
    with job.reading() as connection:
        return servers.get(connection, job.operation.resource_id)


def _ensure_share_server(job: Job) -> OnCommit | None:
    server = _server(job)
    if server is None or server.status is not ServerStatus.ACTIVE:
        return _answer_nothing
    details = served_by(job, server)

    def commit(tx: StepTransaction) -> None:
        health.ensured(tx.connection, server.id, details)
        _answer_nothing(tx)

    return commit


def _answer_nothing(tx: StepTransaction) -> None:
    """Set a result without further operations."""
    tx.result = _answer(tx, [])


def _answer(tx: StepTransaction, started: list[str]) -> dict[str, object]:
    operation = tx.operation
    return {f"{operation.resource_kind}_id": operation.resource_id, "operations": started}


def _ensure_shares(job: Job) -> OnCommit | None:
    """Start an operation for each share of the server; a repeated run finds those it started."""
    server = _server(job)
    operation = job.operation
    gone = operation.resource_kind != "backend" and (
        server is None or server.status is not ServerStatus.ACTIVE
    )
    if gone or not job.manager.can_ensure:
        return _answer_nothing
    assert operation.backend is not None, "a step without a backend has no manager"
    with job.reading() as connection:
        share_ids = shares.made_on(connection, operation.backend, server.id if server else None)
    requester = Requester(operation.project_id, operation.user_id, operation.request_id)
    started = []
    for share_id in share_ids:
        one = job.transaction(partial(_start_one, share_id=share_id, requester=requester))
        if one is not None:
            started.append(one)

    def commit(tx: StepTransaction) -> None:
        tx.result = _answer(tx, started)

    return commit


def _start_one(tx: StepTransaction, *, share_id: str, requester: Requester) -> str | None:
    """Start the repair of one share; return its operation's id, or None if the share is deleted."""
    if not shares.hold_share(tx.connection, share_id):
        return None
    assert tx.operation.backend is not None, "a step without a backend has no manager"
    started = start(
        tx.connection,
        tx.config,
        tx.sagas,
        Begin(ENSURE_SHARE, ("share", share_id), tx.operation.backend),
        requester=requester,
        operation_id=str(uuid.uuid5(uuid.NAMESPACE_OID, f"{tx.operation.id} {share_id}")),
    )
    tx.dispatches.extend(started.dispatches)
    return started.operation_id


def server_not_ensured(job: Job, error: StepError) -> OnCommit:
    """Write the error to the server, which stays ``active`` so that it is repaired again."""
    return lambda tx: health.not_ensured(tx.connection, job.operation.resource_id, error.to_json())


def _ensure_share(job: Job) -> OnCommit | None:
    begun = job.transaction(lambda tx: _begin_ensuring(job, tx))
    if begun is None:
        return None
    row, server, rules, generation = begun
    share = shares.share_of(row)
    locations = job.manager.ensure_share(job.context, share, server)
    failpoint("ensure_share.after_export")
    job.manager.update_access(job.context, share, server, rules, generation)

    def commit(tx: StepTransaction) -> None:
        ensured = shares.ensured(
            tx.connection, share.id, locations=[plain(location) for location in locations]
        )
        tx.result = None if ensured is None else views.SHARE(ensured)

    return commit


def _begin_ensuring(
    job: Job, tx: StepTransaction
) -> tuple[Row[Any], ShareServer | None, list[AccessRule], int] | None:
    """Read a share with its server, rules and their generation; None if it is not exported."""
    row, server = share_and_server(job, tx.connection, job.operation.resource_id)
    if row.status not in _SERVED or not row.export_locations:
        return None
    # Later changes are applied by their own operations, which are queued behind this one.
    rules, generation = access_rules.begin_access(
        tx.connection, row.id, up_to=row.applied_generation
    )
    return row, server, rules, generation


def share_not_ensured(job: Job, error: StepError) -> OnCommit:
    """Write to the share why it is not exported."""

    def commit(tx: StepTransaction) -> None:
        shares.ensured(tx.connection, job.operation.resource_id, error=error.to_json())

    return commit


ensure_share_server = Action("ensure_share_server", _ensure_share_server, timeout=300)
ensure_shares = Action("ensure_shares", _ensure_shares, timeout=300)
ensure_share = Action("ensure_share", _ensure_share, timeout=120)
