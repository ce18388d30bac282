"""Access rules. A share's whole set goes to the driver at once; a generation numbers each set."""

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
    """Mark queued rules as being applied or denied; return the rules to enforce, and a generation.

    Rules in error are left out, because they would make every later set fail. With ``up_to``,
    rules requested after that generation are left out too.
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
    """Return the rules that the driver enforces, oldest first."""
    return _rules(connection, share_id, access_rules.c.state == AccessState.ACTIVE.value)


def _rules(
    connection: Connection, share_id: str, *conditions: ColumnElement[bool]
) -> list[AccessRule]:
    """Return the share's rules that meet the conditions, oldest first."""
    rule = access_rules.c
    rows = connection.execute(
        select(rule.id, rule.access_type, rule.access_to, rule.access_level)
        .where(rule.share_id == share_id, *conditions)
        .order_by(rule.created_at, rule.id)
    )
    return [AccessRule(*row) for row in rows]


def next_generation(connection: Connection, share_id: str) -> int:
    """Return an unused generation for handing the driver a set other than the newest one.

    It is higher than every generation that the driver may have seen, and lower than the next one.
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
    """Record that the driver enforces a generation: mark its rules active, delete denied ones."""
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
    """Record that the driver refused a generation: put its new rules in error."""
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
    """Return an access rule's row, or None when it no longer exists."""
    return connection.execute(select(access_rules).where(access_rules.c.id == rule_id)).first()


def remove_access(connection: Connection, rule_id: str) -> None:
    """Delete an access rule, even if an earlier attempt to deny it failed."""
    connection.execute(delete(access_rules).where(access_rules.c.id == rule_id))
