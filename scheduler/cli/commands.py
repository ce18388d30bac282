"""Commands whose arguments are explained in their help, as options are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])


class Argument(click.Argument):
    """An argument with a help text."""

    def __init__(self, *names: Any, explained: str, **attributes: Any) -> None:
        super().__init__(*names, **attributes)
        self.explained = explained


class Command(click.Command):
    """A command whose help has a section for its arguments."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the arguments, then the options."""
        rows = [
            (one.make_metavar(ctx), one.explained)
            for one in self.get_params(ctx)
            if isinstance(one, Argument)
        ]
        if rows:
            with formatter.section("Arguments"):
                formatter.write_dl(rows)
        super().format_options(ctx, formatter)


class Group(click.Group):
    """A group of such commands."""

    command_class = Command


def argument(name: str, explained: str, **attributes: Any) -> Callable[[_F], _F]:
    """Give a command an argument with a help text."""
    return click.argument(name, cls=Argument, explained=explained, **attributes)
