"""Access: what allow and deny come to.

The driver is always handed the share's whole wanted set with its generation, as it stands when
the step runs. So one step applies every change that was accepted before it, and the steps of
those changes find nothing left to do.
"""

from __future__ import annotations

from typing import Any

from worker.db import inventory
from worker.db.documents import shown
from worker.errors import Fatal, StepError
from worker.job import Job, Writing
from worker.saga import Act, Commit
from worker.tasks.shares import share_and_server


def _update_access(job: Job) -> Commit:
    asked = int(job.operation.payload["generation"])
    with job.transaction() as writing:
        row, server = share_and_server(job, writing.connection, job.operation.resource_id)
        pending = row.applied_generation < asked or job.operation.error is not None
        if pending:
            rules, generation = inventory.begin_access(writing.connection, row.id)
    if not pending:
        return _answer
    share = inventory.share_of(row)
    try:
        job.manager.update_access(job.context, share, server, rules, generation)
    except Fatal:
        if generation <= asked:
            raise
        # A rule that was asked for later may be what the driver refuses: that is not ours.
        with job.transaction() as writing:
            rules, generation = inventory.begin_access(writing.connection, row.id, up_to=asked)
        job.manager.update_access(job.context, share, server, rules, generation)

    def commit(writing: Writing) -> None:
        inventory.end_access(writing.connection, row.id, generation)
        _answer(writing)

    return commit


def _answer(writing: Writing) -> None:
    payload = writing.operation.payload
    rule_id = payload["access_id"]
    if writing.operation.verb == "deny_access":
        # Also a rule in error, whose deny had used up its attempts.
        inventory.remove_access(writing.connection, rule_id)
        writing.result = {"id": rule_id, "state": "deleted"}
        return
    row = inventory.access_row(writing.connection, rule_id)
    rule: dict[str, Any] = (
        shown(row)
        if row is not None
        else {"id": rule_id, "state": "deleted"}  # denied again in the meantime
    )
    writing.result = rule


def access_failed(job: Job, error: StepError) -> Commit:  # noqa: ARG001 - a hook of the engine
    """The driver refused the set for good: what was new in it is in error."""
    generation = int(job.operation.payload["generation"])
    return lambda writing: inventory.access_failed(
        writing.connection, job.operation.resource_id, generation
    )


update_access = Act("update_access", _update_access, timeout=120)
