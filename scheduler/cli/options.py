"""Options that many verbs share."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])


def apply(command: _F, *options: Callable[[_F], _F]) -> _F:
    """Give a command options, the first one first in its help."""
    for option in reversed(options):
        command = option(command)
    return command


def changing(command: _F) -> _F:
    """Add the options of a change: whether to wait for it, and its idempotency key."""
    return apply(
        command,
        click.option("--wait/--no-wait", default=True, help="Wait for the end (default)."),
        click.option(
            "--timeout",
            type=click.FloatRange(min=0),
            default=600.0,
            show_default=True,
            help="Seconds to wait; the operation goes on afterwards.",
        ),
        click.option(
            "--idempotency-key", "key", help="The same key and request give the same operation."
        ),
    )


def listing(command: _F) -> _F:
    """Add the options of a list: its page, and whether it spans all projects."""
    return apply(
        command,
        click.option(
            "--limit",
            type=click.IntRange(1, 1000),
            default=100,
            show_default=True,
            help="Objects to show at most.",
        ),
        click.option("--marker", help="Go on after this id, the last of the page before."),
        click.option("--all-projects", is_flag=True, help="Everybody's (an administrator's)."),
    )


def one_of(option: str, values: type[StrEnum], explained: str) -> Callable[[_F], _F]:
    """Give a command an option that takes one of an enum's values; its help lists them."""
    return click.option(option, type=click.Choice([one.value for one in values]), help=explained)


def described(command: _F) -> _F:
    """Add the options that describe a new object: name, description, metadata."""
    return apply(
        command,
        click.option("--name", help="A name, need not be unique."),
        click.option("--description", help="A text."),
        click.option(
            "--metadata", multiple=True, metavar="KEY=VALUE", help="May be given several times."
        ),
    )


def pairs(values: tuple[str, ...], option: str) -> dict[str, str] | None:
    """``KEY=VALUE`` options as a dictionary; None when there are none."""
    for value in values:
        if "=" not in value:
            raise click.BadParameter(f"{value!r} is not KEY=VALUE.", param_hint=option)
    return dict(value.split("=", 1) for value in values) or None
