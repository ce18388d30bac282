"""Renaming a backend and forgetting one: for an operator, by hand, beside a stopped service.

These write to the database directly: without them, no process of the service would start.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Connection, exists, select

from worker.config import Config
from worker.db import backends as store
from worker.db.core.engine import engine_for, transaction
from worker.db.tables.main import backends
from worker.errors import Conflict, NotFound, ObjectKind

_MARKS: Final = {
    "nova": "set the property backend={new} on each machine of Nova's that has backend={old}",
    "ironic": "set the extra backend={new} on each of Ironic's nodes that has backend={old}",
}
"""What is left to do outside, where a compute helper writes the backend's name."""


def rename(config: Config, old: str, new: str) -> dict[str, Any]:
    """Give what a backend has to a section of the configuration with another name.

    Raises :class:`~worker.errors.NotFound` and :class:`~worker.errors.Conflict`.
    """
    settings = config.backends.get(new)
    if settings is None or old in config.backends:
        raise _conflict(
            new,
            f"Rename the section [backends.{old}] of the configuration to [backends.{new}] on "
            f"every host first, with the service stopped: the database follows.",
        )
    with transaction(engine_for(config.database.url)) as connection:
        held = store.holdings(connection)
        mine, others = held.get(old, store.Holdings()), held.get(new, store.Holdings())
        if not mine and not _is_known(connection, old):
            raise _unknown(old)
        if others:
            raise _conflict(new, f"Backend {new} has {others} of its own; choose another name.")
        if mine.operations:
            raise _conflict(
                old,
                f"Backend {old} has {mine}. Bring it back into the configuration, let them end, "
                f"and rename it then.",
            )
        if settings.host and (mine.shares or mine.servers):
            raise _conflict(
                old,
                f"Backend {old} has {mine} on host {settings.host}, in a directory with its name "
                f"that running file servers use. It cannot be renamed; keep the name, or move the "
                f"shares to another backend.",
            )
        has_domain = any("name" in options for options in settings.network.values())
        store.rename(connection, old, new, rename_domains=not has_domain)
    directory = config.state_dir / "backends"
    then = [f"on each host that has {directory / old}, rename it to {directory / new}"]
    mark = _MARKS.get(settings.compute_helper or "") if mine.servers else None
    if mark:
        then.append(mark.format(old=old, new=new))
    return {"backend": new, "renamed_from": old, "still_to_do": then}


def forget(config: Config, name: str, *, force: bool) -> dict[str, Any]:
    """Delete what the database has of a backend that is not configured any more.

    Only with ``force`` where there are shares or share servers. Raises
    :class:`~worker.errors.NotFound` and :class:`~worker.errors.Conflict`.
    """
    if name in config.backends:
        raise _conflict(
            name, f"Backend {name} is in the configuration; take [backends.{name}] out first."
        )
    with transaction(engine_for(config.database.url)) as connection:
        held = store.holdings(connection).get(name, store.Holdings())
        if not held and not _is_known(connection, name):
            raise _unknown(name)
        if held.operations:
            raise _conflict(
                name,
                f"Backend {name} has {held}. Bring it back into the configuration, and let them "
                f"end or give them up (`sharewright operation give-up`).",
            )
        if held and not force:
            raise _conflict(
                name,
                f"Backend {name} has {held}. Bring it back into the configuration and delete "
                f"them; or repeat this with --force: they are forgotten, whatever is left of "
                f"them outside.",
            )
        forgotten = store.forget(connection, name)
    return {
        "backend": name,
        "forgotten": [{"kind": str(kind), "id": one} for kind, one in forgotten],
    }


def _is_known(connection: Connection, name: str) -> bool:
    return bool(connection.execute(select(exists().where(backends.c.name == name))).scalar_one())


def _unknown(name: str) -> NotFound:
    return NotFound(
        f"The database has nothing of a backend {name}.", object=ObjectKind.BACKEND.ref(name)
    )


def _conflict(name: str, sentence: str) -> Conflict:
    return Conflict(sentence, object=ObjectKind.BACKEND.ref(name))
