"""The `config` commands: show the effective configuration, and check it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import click

from scheduler.cli.commands import Group
from scheduler.cli.session import Session, pass_operator
from worker.config import Config, masked, this_host
from worker.errors import ConfigurationError

_MASK: Final = "***"
_SECRET: Final = re.compile(r"password|passphrase|secret|token|credential|private|(^|_)key$")
_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")


@click.group(cls=Group)
def config() -> None:
    """The configuration: show, check."""


@config.command("show")
@pass_operator
def show(session: Session) -> None:
    """Print the effective configuration as TOML, with secrets masked.

    All defaults are in it, also the backend that `sharewright up` makes for itself: a file that
    begins as a copy of this can be given a second backend.
    """
    effective = session.effective
    document = without_secrets(effective)
    if session.as_json:
        session.print(document)
        return
    click.echo(f"# The configuration {session.where}.")
    if _MASK in json.dumps(document):
        click.echo(f"# In a copy of this, put the secrets where {_MASK} stands.")
    click.echo("\n".join(toml(document)))


@config.command("check")
@pass_operator
def check(session: Session) -> None:
    """Check that processes can start with the configuration on this host.

    External systems are not contacted.
    """
    from worker.app import backend_here, check_times  # noqa: PLC0415 - after `--help`

    effective = session.effective
    check_times(effective)
    if not effective.backends:
        raise ConfigurationError(
            f"The configuration {session.where} has no backend; add a [backends.<name>]."
        )
    here = {
        name: backend.host in {None, this_host()} for name, backend in effective.backends.items()
    }
    problems = []
    for name, is_here in here.items():
        try:
            if is_here:
                backend_here(effective, name)
        except ConfigurationError as error:
            problems.append(error.message)
    if problems:
        raise ConfigurationError("\n".join(problems))
    rows = [
        {"backend": name, "checked": is_here, "host": effective.backends[name].host}
        for name, is_here in here.items()
    ]
    session.print_list({"backends": rows}, ("backend", "checked", "host"))


def without_secrets(effective: Config) -> dict[str, Any]:
    """Return the configuration as a document with its secrets masked."""
    document = effective.model_dump(mode="json", exclude_none=True)
    for backend in document["backends"].values():
        if "host" in backend:
            del backend["group"]  # the host decides it, and a file may not name both
    masked_document: dict[str, Any] = _masked(document)
    return masked_document


def _masked(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _masked(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [_masked(item, name) for item in value]
    if isinstance(value, str):
        return _MASK if value and _SECRET.search(name) else masked(value)
    return value


def toml(document: Mapping[str, Any], *path: str) -> Iterator[str]:
    """Write a document as the lines of a TOML file."""
    tables = {name: item for name, item in document.items() if isinstance(item, dict)}
    plain = {name: item for name, item in document.items() if name not in tables}
    if path and plain:
        yield ""
        yield f"[{'.'.join(map(_key, path))}]"
    for name, item in plain.items():
        yield f"{_key(name)} = {_value(item)}"
    for name, item in tables.items():
        yield from toml(item, *path, name)


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_key(name)} = {_value(item)}' for name, item in value.items())}}}"
    # Strings, numbers and truth values are written in TOML as they are in JSON.
    return json.dumps(value)
