"""Remove orphans, as the second half of an audit.

Each orphan's row is checked again just before the removal. Objects on a server are removed before
the server, and the server before its addresses, which could otherwise be allocated again while the
server still uses them.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Row

from worker.backends.manager import AuditTarget
from worker.db import audits
from worker.db.audits import RowState
from worker.engine.job import Job, StepTransaction
from worker.errors import NotReady, StepError
from worker.failpoints import failpoint
from worker.model import OwnedResource, OwnerKind

NAME: Final = "audit_backend"
REPAIR_SECONDS: Final = 200.0
"""Seconds after which the remaining orphans are left to the next audit; well within the step's
timeout."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class AuditScan:
    """What each part of a backend has listed, and the errors of the parts that could not."""

    listed: list[tuple[AuditTarget, list[OwnedResource]]] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Done:
    """The numbers of orphans removed, not removed after an error, and left to a later audit."""

    removed: int = 0
    not_removed: int = 0
    postponed: int = 0


@dataclass(frozen=True, slots=True)
class _Orphan:
    part: AuditTarget
    owned: OwnedResource
    row: Row[Any]
    rank: tuple[int, bool]

    @property
    def name(self) -> str:
        owned = self.owned
        return f"{owned.kind} {owned.id} of {owned.owner_kind} {owned.owner_id}"


def repair(job: Job, scan: AuditScan) -> Done:
    """Remove the orphans that may be removed; return how many were."""
    backend, ends = job.operation.resource_id, time.monotonic() + REPAIR_SECONDS
    with job.reading() as connection:
        rows = audits.removable(connection, backend, job.runtime.config.engine.audit_grace)
    todo = sorted(_orphans(scan, rows), key=lambda orphan: orphan.rank)
    removed = failed = 0
    # Twice: some objects can be removed only after the file server that uses them.
    for _ in range(2):
        stays: list[_Orphan] = []
        failed = 0
        for orphan in todo:
            if time.monotonic() > ends or _is_needed(job, scan, orphan):
                stays.append(orphan)
            elif _is_orphan(job, orphan):
                if _remove(job, orphan):
                    removed += 1
                else:
                    failed += 1
                    stays.append(orphan)
        todo = stays
    return Done(removed, failed, len(todo) - failed)


def _orphans(scan: AuditScan, rows: list[Row[Any]]) -> list[_Orphan]:
    wanted = {(row.part, row.kind, row.thing): row for row in rows}
    return [
        # A network is removed after the ports on it.
        _Orphan(part, owned, row, (number, owned.owner_kind is OwnerKind.SHARE_NETWORK))
        for number, (part, things) in enumerate(scan.listed)
        for owned in things
        if (row := wanted.get((part.part, owned.kind, owned.id))) is not None
    ]


def _is_needed(job: Job, scan: AuditScan, orphan: _Orphan) -> bool:
    """Return whether an orphaned server may still use this orphan, such as an address."""
    if orphan.part.role != "network":
        return False
    if any(failed == "compute" for failed in scan.errors):
        return True
    with job.reading() as connection:
        return audits.has_orphan(connection, job.operation.resource_id, "compute", orphan.row)


def _is_orphan(job: Job, orphan: _Orphan) -> bool:
    """Return whether the row still does not exist; checked just before the removal."""
    owned, backend = orphan.owned, job.operation.resource_id

    def check_row(tx: StepTransaction) -> bool:
        states = audits.standings(tx.connection, backend, owned.owner_kind, [owned.owner_id])
        if states[owned.owner_id] is RowState.GONE:
            return True
        audits.removed(tx.connection, orphan.row)
        return False

    if job.transaction(check_row):
        return True
    _log.warning("Backend %s: %s has a row again and is kept.", backend, orphan.name)
    return False


def _remove(job: Job, orphan: _Orphan) -> bool:
    """Remove one orphan; on an error, store it with the finding and return False."""
    backend = job.operation.resource_id
    failpoint("audit_backend.before_remove")
    problem: str | None = None
    try:
        job.context.guard()
        orphan.part.remove(job.context, orphan.owned)
    except (StepError, NotReady) as error:
        problem = error.message
    failpoint("audit_backend.after_remove")
    if problem is None:
        job.transaction(lambda tx: audits.removed(tx.connection, orphan.row))
    else:
        why = problem
        job.transaction(lambda tx: audits.not_removed(tx.connection, orphan.row, why))
        _log.warning("Backend %s: %s could not be removed: %s", backend, orphan.name, problem)
        return False
    _log.warning("Backend %s: removed the orphan %s.", backend, orphan.name)
    job.runtime.heartbeat.count(f"audit_removed_total:{orphan.owned.kind}")
    return True
