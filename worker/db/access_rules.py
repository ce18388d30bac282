"""Access rules and the generations in which a share's whole set is handed to its driver."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, and_, case, delete, select, update

from worker.db.core.engine import db_now
from worker.db.tables.main import access_rules, shares
from worker.model import ACCESS_TRANSITIONS, AccessRule, AccessState, sources

_WANTED: Final = (
    AccessState.QUEUED_TO_APPLY.value,
    AccessState.APPLYING.value,
    AccessState.ACTIVE.value,
)
_UNWANTED: Final = (AccessState.QUEUED_TO_DENY.value, AccessState.DENYING.value)


def begin_access(
    connection: Connection, share_id: str, *, up_to: int | None = None
) -> tuple[list[AccessRule], int]:
    """Mark what is queued as being handed over; return the wanted set and its generation.

    A rule in error is left out: it would make every later set fail with it. With ``up_to``, what
    was asked for after that generation is left out too.
    """
    newest = connection.execute(
        select(shares.c.access_generation).where(shares.c.id == share_id).with_for_update()
    ).scalar_one()
    generation = newest if up_to is None else min(newest, up_to)
    rule = access_rules.c
    connection.execute(
        update(access_rules)
        .where(
            rule.share_id == share_id,
            rule.generation <= generation,
            rule.state.in_((AccessState.QUEUED_TO_APPLY.value, AccessState.QUEUED_TO_DENY.value)),
        )
        .values(
            state=case(
                (rule.state == AccessState.QUEUED_TO_APPLY.value, AccessState.APPLYING.value),
                else_=AccessState.DENYING.value,
            ),
            updated_at=db_now(),
        )
    )
    wanted = (rule.generation <= generation, rule.state.in_(_WANTED))
    return _rules(connection, share_id, *wanted), generation


def active_access(connection: Connection, share_id: str) -> list[AccessRule]:
    """Return the rules that the driver was told to enforce and accepted."""
    return _rules(connection, share_id, access_rules.c.state == AccessState.ACTIVE.value)


def _rules(
    connection: Connection, share_id: str, *conditions: ColumnElement[bool]
) -> list[AccessRule]:
    """The share's rules that meet the conditions, the oldest first."""
    rule = access_rules.c
    rows = connection.execute(
        select(rule.id, rule.access_type, rule.access_to, rule.access_level)
        .where(rule.share_id == share_id, *conditions)
        .order_by(rule.created_at, rule.id)
    )
    return [AccessRule(*row) for row in rows]


def next_generation(connection: Connection, share_id: str) -> int:
    """Return a generation to hand over a set that is not the newest one.

    It is newer than any that the driver may have had, and older than the next to be handed over.
    """
    share = shares.c
    generation: int = connection.execute(
        update(shares)
        .where(share.id == share_id)
        .values(access_generation=share.access_generation + 2)
        .returning(share.access_generation)
    ).scalar_one()
    return generation - 1


def end_access(connection: Connection, share_id: str, generation: int) -> None:
    """Mark the rules of a generation active, and delete denied ones: the driver enforces it."""
    rule = access_rules.c
    done = and_(rule.share_id == share_id, rule.generation <= generation)
    connection.execute(
        update(shares)
        .where(shares.c.id == share_id, shares.c.applied_generation < generation)
        .values(applied_generation=generation, updated_at=db_now())
    )
    connection.execute(
        update(access_rules)
        .where(done, rule.state.in_(sources(ACCESS_TRANSITIONS, AccessState.ACTIVE)))
        .values(state=AccessState.ACTIVE.value, updated_at=db_now())
    )
    connection.execute(delete(access_rules).where(done, rule.state.in_(_UNWANTED)))


def access_failed(connection: Connection, share_id: str, generation: int) -> None:
    """Put the new rules of a generation in error: the driver refused it."""
    rule = access_rules.c
    connection.execute(
        update(access_rules)
        .where(
            rule.share_id == share_id,
            rule.generation <= generation,
            rule.state.in_(sources(ACCESS_TRANSITIONS, AccessState.ERROR)),
        )
        .values(state=AccessState.ERROR.value, updated_at=db_now())
    )


def access_row(connection: Connection, rule_id: str) -> Row[Any] | None:
    """Return an access rule's row, if it is still there."""
    return connection.execute(select(access_rules).where(access_rules.c.id == rule_id)).first()


def remove_access(connection: Connection, rule_id: str) -> None:
    """Delete an access rule, whose deny may have failed before."""
    connection.execute(delete(access_rules).where(access_rules.c.id == rule_id))
