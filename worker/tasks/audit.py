"""Audit backends: compare what exists on external systems with the database.

The audit of a backend is an operation of one step, so it is leased, fenced and recovered like any
other. An orphan is removed only when two audits have seen it, it is older than
``engine.audit_grace``, and its row still does not exist just before the removal. Missing objects
are only reported.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Final

from sqlalchemy import Connection, select

from worker.backends.manager import AuditTarget
from worker.config import Config
from worker.db import audits
from worker.db.audits import Finding, Problem, RowState
from worker.db.core.engine import transaction
from worker.db.operations.values import Dispatch
from worker.db.share_servers import store as servers
from worker.db.tables.main import share_servers
from worker.engine.accept import AlreadyAccepted, Begin, OperationRequest, accept
from worker.engine.job import Job, Runtime, StepTransaction
from worker.engine.saga import Action, OnCommit, Sagas
from worker.errors import NotReady, StepError
from worker.failpoints import failpoint
from worker.model import OwnedResource, OwnerKind, ServerStatus, ShareServer
from worker.tasks.orphans import NAME, AuditScan, Done, repair

SYSTEM_PROJECT: Final = "sharewright"
"""The project of operations that the service starts on its own."""

_log = logging.getLogger(__name__)


def _audit(job: Job) -> OnCommit:
    backend = job.operation.resource_id
    with job.reading() as connection:
        serving = _serving(connection, backend)
        before = _expected(connection, backend)
    scan = AuditScan()
    for part in job.manager.audit_targets(serving):
        try:
            scan.listed.append((part, list(part.owned(job.context))))
        except (StepError, NotReady) as error:
            scan.errors[part.part] = error.message
            _log.warning("%s of backend %s: %s", part.part, backend, error.message)
    with job.reading() as connection:
        # A row is inserted before its objects exist and deleted after them, so an object that has
        # no row now will never get one.
        found = list(_orphans(connection, backend, scan))
        after = _expected(connection, backend)
    found += _missing(scan, {kind: before[kind] & after[kind] for kind in before})
    parts = [part.part for part, _ in scan.listed]
    job.transaction(lambda tx: audits.note(tx.connection, backend, parts, found))
    failpoint("audit_backend.after_note")
    done = Done()
    if job.operation.payload["repair"]:
        done = repair(job, scan)
    with job.reading() as connection:
        counts = audits.counts(connection, backend)
    result = {
        "backend": backend,
        "repair": bool(job.operation.payload["repair"]),
        **{f"{problem}": counts.get(problem, 0) for problem in Problem},
        "removed": done.removed,
        "not_removed": done.not_removed,
        "postponed": done.postponed,
        "not_listed": scan.errors,
        "cannot_tell": job.manager.cannot_tell(),
    }
    _announce(job, backend, result)

    def commit(tx: StepTransaction) -> None:
        tx.result = result

    return commit


def _announce(job: Job, backend: str, result: Mapping[str, Any]) -> None:
    heartbeat = job.runtime.heartbeat
    heartbeat.count(f"audits_total:{'incomplete' if result['not_listed'] else 'complete'}")
    level = logging.WARNING if any(result[problem] for problem in Problem) else logging.INFO
    _log.log(
        level,
        "Audit of backend %s: %d orphans left and %d removed, %d missing, %d unknown.",
        backend,
        result[Problem.ORPHAN],
        result["removed"],
        result[Problem.MISSING],
        result[Problem.UNKNOWN],
    )


def _serving(connection: Connection, backend: str) -> list[ShareServer]:
    s = share_servers.c
    rows = connection.execute(
        select(share_servers).where(s.backend == backend, s.status == ServerStatus.ACTIVE.value)
    )
    return [servers.server_of(row) for row in rows]


def _expected(connection: Connection, backend: str) -> dict[OwnerKind, set[str]]:
    kinds = (OwnerKind.SHARE, OwnerKind.SNAPSHOT, OwnerKind.SHARE_SERVER)
    return {kind: audits.expected(connection, backend, kind) for kind in kinds}


def _orphans(connection: Connection, backend: str, scan: AuditScan) -> Iterator[Finding]:
    everything = [owned for _, things in scan.listed for owned in things]
    states = {
        kind: audits.standings(
            connection,
            backend,
            kind,
            [owned.owner_id for owned in everything if owned.owner_kind is kind],
        )
        for kind in OwnerKind
    }
    problems = {RowState.GONE: Problem.ORPHAN, RowState.UNKNOWN: Problem.UNKNOWN}
    for part, things in scan.listed:
        for owned in things:
            problem = problems.get(states[owned.owner_kind][owned.owner_id])
            if problem is not None:
                yield Finding(
                    *(part.part, problem, owned.kind, owned.id, owned.owner_kind),
                    owner_id=owned.owner_id,
                    created_at=owned.created_at,
                )


def _missing(scan: AuditScan, expected: Mapping[OwnerKind, set[str]]) -> Iterator[Finding]:
    """Yield the rows of which no part of a role has an object, unless one of its parts failed."""
    roles: dict[str, list[tuple[AuditTarget, list[OwnedResource]]]] = {}
    for part, things in scan.listed:
        roles.setdefault(part.role, []).append((part, things))
    for role, parts in roles.items():
        if role in {failed.split(" ")[0] for failed in scan.errors}:
            continue
        seen = {(one.owner_kind, one.owner_id) for _, things in parts for one in things}
        first = next((part for part, _ in parts if part.covers), None)
        for kind in first.covers if first else ():
            for owner_id in sorted(expected[kind]):
                if (kind, owner_id) not in seen:
                    assert first is not None, "it has the kind"
                    yield Finding(
                        *(first.part, Problem.MISSING, str(kind), owner_id, kind),
                        owner_id=owner_id,
                    )


def audit_failed(job: Job, error: StepError) -> None:
    """Change nothing: a failed audit has already committed its findings."""


def start_audit(
    connection: Connection,
    config: Config,
    sagas: Sagas,
    backend: str,
    *,
    repair: bool,
) -> list[Dispatch]:
    """Accept a periodic audit; return the messages to publish after the commit.

    The list is empty while another audit of the backend is live: none is accepted then.
    """
    request = OperationRequest(
        str(uuid.uuid4()),
        NAME,
        SYSTEM_PROJECT,
        payload={"backend": backend, "repair": repair},
    )
    try:
        return accept(
            connection,
            config,
            sagas,
            request,
            Begin(NAME, ("backend", backend), backend, at_once=True),
        )
    except AlreadyAccepted:
        return []


def ask_for_audits(runtime: Runtime) -> None:
    """Start the periodic audits that are due; only one reconciler starts each of them."""
    engine = runtime.config.engine
    if not engine.audit_interval:
        return
    dispatches: list[Dispatch] = []
    with transaction(runtime.engine) as connection:
        for backend in audits.due(connection, engine.audit_interval):
            if backend not in runtime.config.backends:
                continue  # the backend was removed from the configuration
            dispatches += start_audit(
                connection, runtime.config, runtime.sagas, backend, repair=engine.audit_repair
            )
    runtime.publish_all(dispatches)


audit_backend = Action(NAME, _audit, timeout=300)
