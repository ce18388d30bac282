"""The audit: what exists outside, against what the database says.

It is an operation of one step for each backend, so it is leased, fenced and taken up again like
any other. An orphan is removed only when it was seen in two audits, is older than the grace time,
and its row is still gone at that very moment; what is missing is reported only.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, Row, select

from worker.config import Config
from worker.db import audits, journal, servers
from worker.db.audits import Finding, Problem, Standing
from worker.db.engine import transaction
from worker.db.operation import Dispatch
from worker.db.tables import share_servers
from worker.errors import NotReady, StepError
from worker.failpoints import failpoint
from worker.job import Job, Runtime, Writing
from worker.manager import Audited
from worker.model import Owned, OwnerKind, ServerStatus, ShareServer
from worker.queues import queue_for
from worker.saga import Act, Commit

NAME: Final = "audit_backend"
SYSTEM_PROJECT: Final = "sharewright"
"""Whose the operations are that nobody asked for."""
REPAIR_SECONDS: Final = 200.0
"""After as long the other orphans are left for the next audit: well within the step's timeout."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Look:
    """What one audit has seen."""

    listed: list[tuple[Audited, list[Owned]]] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    removed: int = 0
    not_removed: int = 0
    postponed: int = 0


def _audit(job: Job) -> Commit:
    backend = job.operation.resource_id
    with job.reading() as connection:
        serving = _serving(connection, backend)
        before = _expected(connection, backend)
    look = _Look()
    for part in job.manager.audited(serving):
        try:
            look.listed.append((part, list(part.owned(job.context))))
        except (StepError, NotReady) as error:
            look.errors[part.part] = error.message
            _log.warning("%s of backend %s: %s", part.part, backend, error.message)
    with job.reading() as connection:
        # Rows come before things and go after them: what has no row now never gets one.
        found = list(_orphans(connection, backend, look))
        after = _expected(connection, backend)
    found += _missing(look, {kind: before[kind] & after[kind] for kind in before})
    with job.transaction() as writing:
        audits.note(writing.connection, backend, [part.part for part, _ in look.listed], found)
    failpoint(f"{NAME}.after_note")
    if job.operation.payload["repair"]:
        _repair(job, backend, look)
    with job.reading() as connection:
        counts = audits.counts(connection, backend)
    result = {
        "backend": backend,
        "repair": bool(job.operation.payload["repair"]),
        **{f"{problem}": counts.get(problem, 0) for problem in Problem},
        "removed": look.removed,
        "not_removed": look.not_removed,
        "postponed": look.postponed,
        "not_listed": look.errors,
        "cannot_tell": job.manager.cannot_tell(),
    }
    _announce(job, backend, result)

    def commit(writing: Writing) -> None:
        writing.result = result

    return commit


def _announce(job: Job, backend: str, result: Mapping[str, Any]) -> None:
    keeper = job.runtime.keeper
    keeper.count(f"audits_total:{'incomplete' if result['not_listed'] else 'complete'}")
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


def _orphans(connection: Connection, backend: str, look: _Look) -> Iterator[Finding]:
    everything = [owned for _, things in look.listed for owned in things]
    standings = {
        kind: audits.standings(
            connection,
            backend,
            kind,
            [owned.owner_id for owned in everything if owned.owner_kind is kind],
        )
        for kind in OwnerKind
    }
    problems = {Standing.GONE: Problem.ORPHAN, Standing.UNKNOWN: Problem.UNKNOWN}
    for part, things in look.listed:
        for owned in things:
            problem = problems.get(standings[owned.owner_kind][owned.owner_id])
            if problem is not None:
                yield Finding(
                    *(part.part, problem, owned.kind, owned.id, owned.owner_kind),
                    owner_id=owned.owner_id,
                    created_at=owned.created_at,
                )


def _missing(look: _Look, expected: Mapping[OwnerKind, set[str]]) -> Iterator[Finding]:
    """Rows of which no part of a role has anything, where all its parts could tell."""
    roles: dict[str, list[tuple[Audited, list[Owned]]]] = {}
    for part, things in look.listed:
        roles.setdefault(part.role, []).append((part, things))
    for role, parts in roles.items():
        if role in {failed.split(" ")[0] for failed in look.errors}:
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


def _repair(job: Job, backend: str, look: _Look) -> None:
    """Remove what may be removed, what is on a server before it and its addresses after it."""
    ends = time.monotonic() + REPAIR_SECONDS
    with job.reading() as connection:
        rows = audits.removable(connection, backend, job.runtime.config.engine.audit_grace)
        left = audits.orphans(connection, backend)
    there = {
        # A network goes after the ports on it.
        (part.part, owned.kind, owned.id): (
            (number, owned.owner_kind is OwnerKind.SHARE_NETWORK),
            part,
            owned,
        )
        for number, (part, things) in enumerate(look.listed)
        for owned in things
    }
    todo = [(row, *there[row.part, row.kind, row.thing]) for row in rows if _key(row) in there]
    for row, _, part, owned in sorted(todo, key=lambda one: one[1]):
        owner = (row.owner_kind, row.owner_id)
        if part.role == "network" and ("compute" in look.errors or ("compute", *owner) in left):
            look.postponed += 1  # a server that exists uses its addresses
            continue
        if time.monotonic() > ends:
            look.postponed += 1
            continue
        if not _is_orphan(job, backend, row, owned):
            left.discard((part.part, *owner))
        elif not _remove(job, backend, row, part, owned):
            look.not_removed += 1
        else:
            look.removed += 1
            if _was_last(look, part, owned):
                left.discard((part.part, *owner))


def _key(row: Row[Any]) -> tuple[str, str, str]:
    return row.part, row.kind, row.thing


def _was_last(look: _Look, part: Audited, owned: Owned) -> bool:
    """Whether nothing else of the owner is known to the part, now that this was removed."""
    for known, things in look.listed:
        if known.part == part.part:
            things.remove(owned)
            return not any(
                (one.owner_kind, one.owner_id) == (owned.owner_kind, owned.owner_id)
                for one in things
            )
    return True


def _is_orphan(job: Job, backend: str, row: Row[Any], owned: Owned) -> bool:
    """Whether the row is still gone: looked at again in the same breath as the removal."""
    with job.transaction() as writing:
        standing = audits.standings(
            writing.connection, backend, owned.owner_kind, [owned.owner_id]
        )[owned.owner_id]
        if standing is Standing.GONE:
            return True
        audits.removed(writing.connection, row)
    _log.warning("Backend %s: %s is live again and stays.", backend, _named(owned))
    return False


def _named(owned: Owned) -> str:
    return f"{owned.kind} {owned.id} of {owned.owner_kind} {owned.owner_id}"


def _remove(job: Job, backend: str, row: Row[Any], part: Audited, owned: Owned) -> bool:
    """Remove one orphan; False when that failed, which is kept with the finding."""
    failpoint(f"{NAME}.before_remove")
    problem: str | None = None
    try:
        job.context.guard()
        part.remove(job.context, owned)
    except (StepError, NotReady) as error:
        problem = error.message
    failpoint(f"{NAME}.after_remove")
    with job.transaction() as writing:
        if problem is None:
            audits.removed(writing.connection, row)
        else:
            audits.not_removed(writing.connection, row, problem)
    if problem is not None:
        _log.warning("Backend %s: %s could not be removed: %s", backend, _named(owned), problem)
        return False
    _log.warning("Backend %s: removed the orphan %s.", backend, _named(owned))
    job.runtime.keeper.count(f"audit_removed_total:{owned.kind}")
    return True


def audit_failed(job: Job, error: StepError) -> None:
    """An audit that failed changes nothing: what it had found by then is written."""


def start_audit(
    connection: Connection, config: Config, backend: str, *, repair: bool
) -> Dispatch | None:
    """Accept an audit that nobody asked for; None while another one of the backend is live."""
    return journal.accept(
        connection,
        {
            "id": str(uuid.uuid4()),
            "project_id": SYSTEM_PROJECT,
            "verb": NAME,
            "resource_kind": "backend",
            "resource_id": backend,
            "payload": {"backend": backend, "repair": repair},
            "payload_digest": "",
            "saga": NAME,
            "backend": backend,
            "queue": queue_for(config, backend),
            "task": NAME,
        },
        running=True,
        patience=config.engine.lease,
    )


def ask_for_audits(runtime: Runtime) -> None:
    """Start the periodic audits that are due, each by one reconciler only."""
    engine = runtime.config.engine
    if not engine.audit_interval:
        return
    bells = []
    with transaction(runtime.engine) as connection:
        for backend in audits.due(connection, engine.audit_interval):
            if backend not in runtime.config.backends:
                continue  # it reported before it was taken out of the configuration
            bell = start_audit(connection, runtime.config, backend, repair=engine.audit_repair)
            if bell is not None:
                bells.append(bell)
    runtime.ring(bells)


audit_backend = Act(NAME, _audit, timeout=300)
