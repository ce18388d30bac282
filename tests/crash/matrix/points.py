"""The failpoints that there are: read from the source itself, so that none is forgotten."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from worker.tasks.sagas import ACTIONS, SAGAS

ROOT: Final = Path(__file__).resolve().parents[3]
SOURCES: Final = ("worker", "scheduler")
GENERIC: Final = ("{action.name}.", "{compensation.name}.", "{name}.")
"""How the runner and the fakes' world name the places of whichever action they have."""
ACTIONS_WITHOUT_A_CALL: Final = {"audit_backend", "ensure_share_server", "ensure_shares"}
"""Actions after which no call to the fakes' world is named."""


def _named(tree: ast.AST) -> Iterator[str]:
    """The argument of every call of ``failpoint``; what is filled in stands in braces."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "failpoint"
        ):
            (argument,) = node.args
            yield ast.unparse(argument).removeprefix("f").strip("'\"")


@functools.cache
def found() -> frozenset[str]:
    """Every failpoint of the product, as its source has it."""
    return frozenset(
        name
        for folder in SOURCES
        for path in (ROOT / folder).rglob("*.py")
        if "failpoint(" in (text := path.read_text())
        for name in _named(ast.parse(text))
    )


def compensations() -> set[str]:
    """The names of the compensating actions."""
    return {step.compensation.name for saga in SAGAS for step in saga.steps if step.compensation}


def of_actions() -> dict[str, set[str]]:
    """The stages that each action of the registry passes, by its name."""
    stages: dict[str, set[str]] = {name: set() for name in ACTIONS}
    for name in found():
        owner, _, stage = name.rpartition(".")
        if owner == "{action.name}":
            for mine in stages.values():
                mine.add(stage)
        elif owner == "{compensation.name}":
            for compensation in compensations():
                stages[compensation].add(stage)
        elif owner == "{name}":  # each call to the fakes' world
            for action in stages.keys() - ACTIONS_WITHOUT_A_CALL:
                stages[action].add(stage)
        elif owner in stages:
            stages[owner].add(stage)
    return stages


def all_points() -> set[str]:
    """Every failpoint by its full name."""
    actions = {f"{action}.{stage}" for action, stages in of_actions().items() for stage in stages}
    return actions | {name for name in found() if not name.startswith(GENERIC)}
