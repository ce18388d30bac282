"""Removing orphans: the second half of an audit.

Each is looked at once more in the same breath as it is removed. What is on a server goes before
the server, and that before its addresses: those would be given out again.
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
"""After as long the other orphans are left for the next audit: well within the step's timeout."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class AuditScan:
    """What an audit has seen: what each part listed, and why others could not."""

    listed: list[tuple[AuditTarget, list[OwnedResource]]] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Done:
    """How many orphans were removed, could not be, and were left for another audit."""

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


def repair(job: Job, look: AuditScan) -> Done:
    """Remove the orphans that may be removed."""
    backend, ends = job.operation.resource_id, time.monotonic() + REPAIR_SECONDS
    with job.reading() as connection:
        rows = audits.removable(connection, backend, job.runtime.config.engine.audit_grace)
    todo = sorted(_orphans(look, rows), key=lambda orphan: orphan.rank)
    removed = failed = 0
    # Twice: what a file server holds on to can go once that is gone.
    for _ in range(2):
        stays: list[_Orphan] = []
        failed = 0
        for orphan in todo:
            if time.monotonic() > ends or _is_needed(job, look, orphan):
                stays.append(orphan)
            elif _is_orphan(job, orphan):
                if _remove(job, orphan):
                    removed += 1
                else:
                    failed += 1
                    stays.append(orphan)
        todo = stays
    return Done(removed, failed, len(todo) - failed)


def _orphans(look: AuditScan, rows: list[Row[Any]]) -> list[_Orphan]:
    wanted = {(row.part, row.kind, row.thing): row for row in rows}
    return [
        # A network goes after the ports on it.
        _Orphan(part, owned, row, (number, owned.owner_kind is OwnerKind.SHARE_NETWORK))
        for number, (part, things) in enumerate(look.listed)
        for owned in things
        if (row := wanted.get((part.part, owned.kind, owned.id))) is not None
    ]


def _is_needed(job: Job, look: AuditScan, orphan: _Orphan) -> bool:
    """Whether it is an address, or the like, that a left-over server may still use."""
    if orphan.part.role != "network":
        return False
    if any(failed == "compute" for failed in look.errors):
        return True
    with job.reading() as connection:
        return audits.has_orphan(connection, job.operation.resource_id, "compute", orphan.row)


def _is_orphan(job: Job, orphan: _Orphan) -> bool:
    """Whether the row is still gone: looked at again in the same breath as the removal."""
    owned, backend = orphan.owned, job.operation.resource_id

    def look_again(tx: StepTransaction) -> bool:
        standings = audits.standings(tx.connection, backend, owned.owner_kind, [owned.owner_id])
        if standings[owned.owner_id] is RowState.GONE:
            return True
        audits.removed(tx.connection, orphan.row)
        return False

    if job.transaction(look_again):
        return True
    _log.warning("Backend %s: %s is live again and stays.", backend, orphan.name)
    return False


def _remove(job: Job, orphan: _Orphan) -> bool:
    """Remove one orphan; False when that failed, which is kept with the finding."""
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
