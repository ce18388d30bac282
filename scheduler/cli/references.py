"""References to objects on the command line: an id, its first letters, or a name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import click

from scheduler.cli.commands import argument
from worker.errors import InvalidRequest, NotFound

SHORTEST_PREFIX: Final = 4
_LOOKED_AT: Final = 20_000
"""Objects that are looked through for a name; more are a reason to give the id."""
_PAGE: Final = 1000
_NAMED: Final = 5
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")

_F = TypeVar("_F", bound=Callable[..., Any])
Ask = Callable[..., dict[str, Any]]
"""Answers a list request: its verb, and its fields by name."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Objects that a command refers to, and the request that lists them."""

    name: str
    verb: str
    label: str | None = None
    """The field that names an object, where they have names."""
    within: str | None = None
    """The option with the id of the object that they belong to."""


SHARE: Final = Kind("share", "list_shares", "name")
SNAPSHOT: Final = Kind("snapshot", "list_snapshots", "name")
ACCESS_RULE: Final = Kind("access rule", "list_access", "access_to", within="share_id")
SHARE_NETWORK: Final = Kind("share network", "list_share_networks", "name")
SECURITY_SERVICE: Final = Kind("security service", "list_security_services", "name")
SHARE_SERVER: Final = Kind("share server", "list_share_servers")
OPERATION: Final = Kind("operation", "list_operations")


class Reference(click.ParamType[str]):
    """An argument or option that refers to an object."""

    name = "id"

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    @property
    def accepts(self) -> str:
        """Describe the accepted values."""
        named = f", {self.kind.label}" if self.kind.label else ""
        return f"id{named}, or the first letters of its id"


def reference(name: str, kind: Kind, **attributes: Any) -> Callable[[_F], _F]:
    """Give a command an argument that refers to an object."""
    wanted = Reference(kind)
    article = "An" if kind.name[0] in "aeo" else "A"
    return argument(
        name, f"{article} {kind.name}: its {wanted.accepts}.", type=wanted, **attributes
    )


def referring(option: str, name: str, kind: Kind, explained: str) -> Callable[[_F], _F]:
    """Give a command an option that refers to an object."""
    wanted = Reference(kind)
    shown = "NAME|ID" if kind.label else "ID"
    return click.option(option, name, type=wanted, metavar=shown, help=explained)


def resolved(command: click.Command, options: Mapping[str, Any], ask: Ask) -> dict[str, Any]:
    """Replace names and beginnings of ids in a command's options by whole ids.

    Raises :class:`~worker.errors.NotFound`, or :class:`~worker.errors.InvalidRequest` when
    several objects are meant.
    """
    found = dict(options)
    for parameter in command.params:
        name = parameter.name
        if isinstance(parameter.type, Reference) and name and found.get(name) is not None:
            kind = parameter.type.kind
            scope = {kind.within: found[kind.within]} if kind.within else {}
            found[name] = _id_of(kind, found[name], ask, scope, name)
    return found


def _id_of(kind: Kind, given: str, ask: Ask, scope: Mapping[str, Any], field: str) -> str:
    if _UUID.fullmatch(given):
        return given
    named: list[tuple[str, str]] = []
    begun: list[tuple[str, str]] = []
    for row in _rows(kind, ask, scope, given):
        if row["id"] == given:
            return given
        entry = (row["id"], str(row.get(kind.label or "", "")))
        if kind.label and entry[1] == given:
            named.append(entry)
        elif len(given) >= SHORTEST_PREFIX and row["id"].startswith(given):
            begun.append(entry)
    candidates = named or begun
    if len(candidates) == 1:
        return candidates[0][0]
    if candidates:
        shown = ", ".join(f"{i} ({label})" if label else i for i, label in candidates[:_NAMED])
        more = f" and {len(candidates) - _NAMED} more" if len(candidates) > _NAMED else ""
        raise InvalidRequest(
            f"{given} may be several {kind.name}s: {shown}{more}. Give the id, or more of it.",
            field=field,
        )
    if _ID.fullmatch(given):
        return given  # another project's, or an operation's second id: the service knows
    raise NotFound(
        f"There is no {kind.name} {given!r} in this project, neither by name nor by id.",
        object=f"{kind.name.replace(' ', '_')} {given}",
        field=field,
    )


def _rows(
    kind: Kind, ask: Ask, scope: Mapping[str, Any], given: str
) -> Iterator[Mapping[str, Any]]:
    marker = None
    for _ in range(0, _LOOKED_AT, _PAGE):
        document = ask(kind.verb, limit=_PAGE, marker=marker, **scope)
        yield from next(value for name, value in document.items() if name != "next_marker")
        marker = document["next_marker"]
        if marker is None:
            return
    raise InvalidRequest(
        f"There are more than {_LOOKED_AT} {kind.name}s; give the whole id instead of {given}."
    )
