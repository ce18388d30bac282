"""Access: what allow and deny come to.

The driver is always handed the share's whole wanted set with its generation, as it stands when
the step runs. So one step applies every change that was accepted before it, and the steps of
those changes find nothing left to do.
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
        # A rule that was asked for later may be what the driver refuses: that is not ours.
        rules, generation, newer = job.transaction(lambda tx: _begin_own(tx, row.id, asked))
        job.manager.update_access(job.context, share, server, rules, newer)

    def commit(tx: StepTransaction) -> None:
        access_rules.end_access(tx.connection, row.id, generation)
        _answer(tx)

    return commit


def _begin(
    job: Job, tx: StepTransaction, asked: int
) -> tuple[Row[Any], ShareServer | None, list[AccessRule], int] | None:
    """Begin the share's whole set; None when a later operation has applied what was asked."""
    row, server = share_and_server(job, tx.connection, job.operation.resource_id)
    if row.applied_generation >= asked and job.operation.error is None:
        return None
    rules, generation = access_rules.begin_access(tx.connection, row.id)
    return row, server, rules, generation


def _begin_own(tx: StepTransaction, share_id: str, asked: int) -> tuple[list[AccessRule], int, int]:
    """Begin the set without what was asked for later, under a generation of its own."""
    rules, generation = access_rules.begin_access(tx.connection, share_id, up_to=asked)
    # The refused set may have got half-way: what replaces it must be newer.
    return rules, generation, access_rules.next_generation(tx.connection, share_id)


def _answer(tx: StepTransaction) -> None:
    payload = tx.operation.payload
    rule_id = payload["access_id"]
    if tx.operation.verb == "deny_access":
        # Also a rule in error, whose deny had failed for too long.
        access_rules.remove_access(tx.connection, rule_id)
        tx.result = {"id": rule_id, "state": "deleted"}
        return
    row = access_rules.access_row(tx.connection, rule_id)
    rule: dict[str, Any] = (
        views.ACCESS_RULE(row)
        if row is not None
        else {"id": rule_id, "state": "deleted"}  # denied again in the meantime
    )
    tx.result = rule


def access_failed(job: Job, error: StepError) -> OnCommit:
    """The driver refused the set for good: what was new in it is in error.

    It may enforce that all the same, having got half-way: a failed allow is taken back outside.
    """
    share_id = job.operation.resource_id
    generation = int(job.operation.payload["generation"])
    if job.operation.verb == "allow_access":
        try:
            _take_back(job, share_id)
        except StepError as second:
            _log.warning(
                "After %s, the rules of share %s could not be handed over without the new one: %s",
                error.message,
                share_id,
                second.message,
            )
    return lambda tx: access_rules.access_failed(tx.connection, share_id, generation)


def _take_back(job: Job, share_id: str) -> None:
    """Hand the driver the rules that are active, and no other."""

    def begin(
        tx: StepTransaction,
    ) -> tuple[Row[Any], ShareServer | None, list[AccessRule], int]:
        row, server = share_and_server(job, tx.connection, share_id)
        rules = access_rules.active_access(tx.connection, share_id)
        return row, server, rules, access_rules.next_generation(tx.connection, share_id)

    row, server, rules, generation = job.transaction(begin)
    job.manager.update_access(job.context, shares.share_of(row), server, rules, generation)


update_access = Action("update_access", _update_access, timeout=120)
