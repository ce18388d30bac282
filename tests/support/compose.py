"""``docker-compose.yml`` as processes: what Compose would run, and with which environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import yaml

from tests.support.services import ROOT

FILE: Final = ROOT / "docker-compose.yml"
_VARIABLE: Final = re.compile(r"\$(?:(\$)|\{(\w+)(?::([?-])([^}]*))?\})")


@dataclass(frozen=True)
class ComposeService:
    """A service's own command, and the environment that the file gives it."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    document: Mapping[str, Any]


def load(variables: Mapping[str, str]) -> dict[str, ComposeService]:
    """Every service, with ``${...}`` replaced as Compose does; a missing ``:?`` is a KeyError."""
    document = _substitute(yaml.safe_load(FILE.read_text()), variables)
    return {
        name: ComposeService(
            name,
            tuple(service.get("command", ())),
            dict(service.get("environment", {})),
            service,
        )
        for name, service in document["services"].items()
    }


def _substitute(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _substitute(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [_substitute(item, variables) for item in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        dollar, name, operator, rest = match.groups()
        if dollar:
            return "$"
        found = variables.get(name) or (rest if operator == "-" else "")
        if not found and operator == "?":
            raise KeyError(f"{name}: {rest}")
        return found

    return _VARIABLE.sub(replace, value)
