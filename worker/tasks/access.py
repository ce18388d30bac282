"""Apply access rules to a share, for the verbs ``allow_access`` and ``deny_access``.

The driver always gets the share's complete set of rules, as it is when the step runs, with the
set's generation. So one step applies all changes that were accepted before it, and the steps of
those changes have nothing left to do.
"""

from __future__ import annotations

import logging
from typing import Any

from sqlalchemy import Row

from worker.db import access_rules, shares, views
from worker.engine.job import Job, StepTransaction
from worker.engine.saga import Action, OnCommit
from worker.errors import Fatal, StepError
from worker.model import AccessRule, ShareServer
from worker.tasks.shares import is_gone, share_and_server

_log = logging.getLogger(__name__)


def _update_access(job: Job) -> OnCommit:
    if is_gone(job):
        return _answer
    asked = int(job.operation.payload["generation"])
    begun = job.transaction(lambda tx: _begin(job, tx, asked))
    if begun is None:
        return _answer
    row, server, rules, generation = begun
    share = shares.share_of(row)
    try:
        job.manager.update_access(job.context, share, server, rules, generation)
    except Fatal:
        if generation <= asked:
            raise
        # The driver may have refused a rule of a later operation: apply the set without those.
        rules, generation, newer = job.transaction(lambda tx: _begin_own(tx, row.id, asked))
        job.manager.update_access(job.context, share, server, rules, newer)

    def commit(tx: StepTransaction) -> None:
        access_rules.end_access(tx.connection, row.id, generation)
        _answer(tx)

    return commit


def _begin(
    job: Job, tx: StepTransaction, asked: int
) -> tuple[Row[Any], ShareServer | None, list[AccessRule], int] | None:
    """Read the share's complete set to apply it; None when a later operation has applied it."""
    row, server = share_and_server(job, tx.connection, job.operation.resource_id)
    if row.applied_generation >= asked and job.operation.error is None:
        return None
    rules, generation = access_rules.begin_access(tx.connection, row.id)
    return row, server, rules, generation


def _begin_own(tx: StepTransaction, share_id: str, asked: int) -> tuple[list[AccessRule], int, int]:
    """Read the set without the changes of later operations, and give it a new generation.

    Returns the rules, the generation that they contain, and the new one for the driver.
    """
    rules, generation = access_rules.begin_access(tx.connection, share_id, up_to=asked)
    # The driver may have applied part of the refused set, so its replacement must be newer.
    return rules, generation, access_rules.next_generation(tx.connection, share_id)


def _answer(tx: StepTransaction) -> None:
    payload = tx.operation.payload
    rule_id = payload["access_id"]
    if tx.operation.verb == "deny_access":
        # This includes a rule in error after a failed deny.
        access_rules.remove_access(tx.connection, rule_id)
        tx.result = {"id": rule_id, "state": "deleted"}
        return
    row = access_rules.access_row(tx.connection, rule_id)
    rule: dict[str, Any] = (
        views.ACCESS_RULE(row)
        if row is not None
        else {"id": rule_id, "state": "deleted"}  # denied in the meantime
    )
    tx.result = rule


def access_failed(job: Job, error: StepError) -> OnCommit:
    """Mark the new rules of a set as failed, after the driver has refused the set.

    The driver may have applied part of the set, so a failed allow is also removed from the share by
    applying the active rules again.
    """
    share_id = job.operation.resource_id
    generation = int(job.operation.payload["generation"])
    if job.operation.verb == "allow_access":
        try:
            _take_back(job, share_id)
        except StepError as second:
            _log.warning(
                "After %s, the rules of share %s could not be applied without the new one: %s",
                error.message,
                share_id,
                second.message,
            )
    return lambda tx: access_rules.access_failed(tx.connection, share_id, generation)


def _take_back(job: Job, share_id: str) -> None:
    """Apply only the rules that are active."""

    def begin(
        tx: StepTransaction,
    ) -> tuple[Row[Any], ShareServer | None, list[AccessRule], int]:
        row, server = share_and_server(job, tx.connection, share_id)
        rules = access_rules.active_access(tx.connection, share_id)
        return row, server, rules, access_rules.next_generation(tx.connection, share_id)

    row, server, rules, generation = job.transaction(begin)
    job.manager.update_access(job.context, shares.share_of(row), server, rules, generation)


update_access = Action("update_access", _update_access, timeout=120)
