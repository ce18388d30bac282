"""Handlers of access requests: a rule is a row with a state and the share's access generation."""

from __future__ import annotations

import uuid

from sqlalchemy import insert, select, update

from scheduler.acceptance import lookup
from scheduler.acceptance.accept import Acceptance
from scheduler.requests.access import AllowAccess, DenyAccess
from worker.db.core.engine import db_now
from worker.db.tables.main import access_rules, shares
from worker.engine.accept import Begin
from worker.errors import Conflict, ObjectKind
from worker.model import AccessState

_LEAVING = (AccessState.QUEUED_TO_DENY.value, AccessState.DENYING.value)


def allow(acceptance: Acceptance) -> Begin:
    """Write the rule, and begin (or queue) an operation that gives the driver the new set."""
    request: AllowAccess = acceptance.request
    connection = acceptance.connection
    share = lookup.share(connection, request.share_id, acceptance.project_id)
    lookup.check_status(share, ObjectKind.SHARE, "available", "extending", to="allow access to")
    rule = access_rules.c
    same = connection.execute(
        select(rule.id).where(
            rule.share_id == share.id,
            rule.access_to == request.access_to,
            rule.state.not_in(_LEAVING),
        )
    ).first()
    if same is not None:
        raise Conflict(
            f"The share {share.id} has a rule for {request.access_to} already ({same.id}); "
            f"deny that one first.",
            object=ObjectKind.ACCESS_RULE.ref(same.id),
            field="access_to",
        )
    generation = _next_generation(acceptance, share.id)
    rule_id = str(uuid.uuid4())
    connection.execute(
        insert(access_rules).values(
            id=rule_id,
            share_id=share.id,
            project_id=acceptance.project_id,
            access_type=request.access_type,
            access_to=request.access_to,
            access_level=request.access_level,
            state=AccessState.QUEUED_TO_APPLY.value,
            generation=generation,
            created_at=db_now(),
            updated_at=db_now(),
        )
    )
    return Begin(
        "allow_access",
        ("share", share.id),
        share.backend,
        payload={"access_id": rule_id, "generation": generation},
    )


def deny(acceptance: Acceptance) -> Begin:
    """Mark the rule, and begin (or queue) an operation that gives the driver the set without it."""
    request: DenyAccess = acceptance.request
    connection = acceptance.connection
    share = lookup.share(connection, request.share_id, acceptance.project_id)
    row = lookup.rule(connection, request.access_id, share.id)
    # While the share is exported, denying a client must be possible in every status.
    exported = ("error", "error_deleting") if share.export_locations else ()
    lookup.check_status(
        share, ObjectKind.SHARE, "available", "extending", *exported, to="deny access to"
    )
    if row.state in _LEAVING:
        raise Conflict(
            f"The rule {row.id} is being denied already.", object=ObjectKind.ACCESS_RULE.ref(row.id)
        )
    generation = _next_generation(acceptance, share.id)
    connection.execute(
        update(access_rules)
        .where(access_rules.c.id == row.id)
        .values(state=AccessState.QUEUED_TO_DENY.value, generation=generation, updated_at=db_now())
    )
    return Begin(
        "deny_access",
        ("share", share.id),
        share.backend,
        payload={"generation": generation},
    )


def _next_generation(acceptance: Acceptance, share_id: str) -> int:
    generation: int = acceptance.connection.execute(
        update(shares)
        .where(shares.c.id == share_id)
        .values(access_generation=shares.c.access_generation + 1)
        .returning(shares.c.access_generation)
    ).scalar_one()
    return generation
