"""Error messages for the command line: options are named instead of payload fields."""

from __future__ import annotations

import re
from dataclasses import replace

import click

from scheduler.exits import Failure


def spelled(failure: Failure, command: click.Command | None) -> str:
    """Return an error's sentence, in which options stand for the payload's fields."""
    if command is None:
        return failure.sentence()
    options = {one.name: _option(command, one) for one in command.params if one.name}
    option = options.get(failure.field.partition(".")[0], "")
    message = failure.message
    if option:
        # A payload is refused with "<verb>: <field>: <problem>"; whoever typed it knows the verb.
        _, found, problem = message.partition(f": {failure.field}: ")
        message = f"{option}: {problem}" if found else message
    for name, spelling in options.items():
        if "_" in name:  # others, like "size" or "name", may be just words
            message = re.sub(rf"`?\b{name}\b`?", spelling, message)
    if option and option not in message:
        return f"{message} ({option})"
    return message if option else replace(failure, message=message).sentence()


def _option(command: click.Command, parameter: click.Parameter) -> str:
    if isinstance(parameter, click.Option):
        return max(parameter.opts, key=len)
    return parameter.make_metavar(click.Context(command)).strip("[]")
