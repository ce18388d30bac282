"""The keys that passwords are sealed with: an operator's, on a host that has them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from scheduler.cli.commands import Group, argument
from scheduler.cli.session import Session, pass_operator
from worker.errors import Conflict, NotFound

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from worker.sealing import Keys

_T = TypeVar("_T")
_COLUMNS: Final = ("id", "is_current", "has_private", "passwords")


def _keys(session: Session) -> Keys:
    from worker.sealing import Keys  # noqa: PLC0415 - after `--help`

    return Keys(session.config.secrets.directory)


def _transaction(session: Session, work: Callable[[Connection], _T]) -> _T:
    from worker.db.core.engine import engine_for, transaction  # noqa: PLC0415 - after `--help`

    with session.reaching(), transaction(engine_for(session.config.database.url)) as connection:
        return work(connection)


@click.group(cls=Group)
def secrets() -> None:
    """The keys that passwords are sealed with: generate, rotate, reseal, retire, list."""


@secrets.command("generate")
@pass_operator
def generate(session: Session) -> None:
    """Create the first key."""
    keys = _keys(session)
    current = keys.current()
    if current is not None:
        raise Conflict(
            f"There is a key already, {current.id}; `sharewright secrets rotate` makes another one "
            f"the current one."
        )
    session.print({"key_id": keys.generate().id, "directory": str(keys.directory)})


@secrets.command("rotate")
@pass_operator
def rotate(session: Session) -> None:
    """Make a new key the current one; passwords that older ones sealed can still be opened."""
    keys = _keys(session)
    session.print({"key_id": keys.generate().id, "directory": str(keys.directory)})


@secrets.command("reseal")
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Passwords to seal in one transaction.",
)
@pass_operator
def reseal(session: Session, batch: int) -> None:
    """Seal all passwords with the current key, so that older ones can be retired."""
    from worker.db import security_services as security  # noqa: PLC0415 - after `--help`

    keys = _keys(session)
    if keys.current() is None:
        raise NotFound("There is no key yet; `sharewright secrets generate` makes one.")
    done: dict[str, bool] = {}
    while True:
        after = max(done, default="")
        batch_after = partial(security.reseal, keys=keys, after=after, limit=batch)
        found = _transaction(session, batch_after)
        done.update(found)
        if len(found) < batch:
            break
    unopened = sorted(service for service, sealed in done.items() if not sealed)
    session.print({"resealed": len(done) - len(unopened), "not_opened": unopened})
    if unopened:
        raise Conflict(
            f"Their key does not open the passwords of security services {', '.join(unopened)}; "
            f"their projects have to update them."
        )


@secrets.command("retire")
@argument("key_id", "A key's id; see `secrets list`.")
@pass_operator
def retire(session: Session, key_id: str) -> None:
    """Destroy a key that no password is sealed with any more."""
    from worker.db import security_services as security  # noqa: PLC0415 - after `--help`

    keys = _keys(session)
    current = keys.current()
    if key_id not in keys.ids():
        raise NotFound(f"There is no key {key_id} in {keys.directory}.", field="key_id")
    if current is not None and key_id == current.id:
        raise Conflict(f"The key {key_id} is the current one; `secrets rotate` comes first.")
    keys.refuse(key_id)
    try:
        users = _transaction(session, security.settled_uses).get(key_id, 0)
        if users:
            raise Conflict(
                f"{users} password{'s are' if users > 1 else ' is'} sealed with the key {key_id}; "
                f"`sharewright secrets reseal` comes first."
            )
    except BaseException:
        keys.accept(key_id)
        raise
    keys.remove(key_id)
    session.print({"key_id": key_id, "status": "retired"})


@secrets.command("list")
@pass_operator
def list_keys(session: Session) -> None:
    """List the keys that are here or that passwords are sealed with, and how many are."""
    from worker.db import security_services as security  # noqa: PLC0415 - after `--help`

    keys = _keys(session)
    current = keys.current()
    used: dict[str, Any] | None = session.query(lambda found: dict(security.uses(found)))
    ids = sorted({*keys.ids(), *(used or {})})
    rows = [
        {
            "id": key_id,
            "is_current": current is not None and key_id == current.id,
            "has_private": keys.has_private(key_id),
            "passwords": None if used is None else used.get(key_id, 0),
        }
        for key_id in ids
    ]
    session.print_list({"keys": rows}, _COLUMNS)
