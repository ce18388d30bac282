"""The failpoints that there are: read from the source itself, so that none is forgotten."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from worker.tasks.sagas import ACTS, SAGAS

ROOT: Final = Path(__file__).resolve().parents[3]
SOURCES: Final = ("worker", "scheduler")
GENERIC: Final = ("{act.name}.", "{undo.name}.", "{name}.")
"""How the runner and the fakes' world name the places of whichever act they have."""
ACTS_WITHOUT_A_CALL: Final = {"audit_backend", "ensure_share_server", "ensure_shares"}
"""Acts after which no call to the fakes' world is named."""


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


def undos() -> set[str]:
    """The names of the acts that undo."""
    return {step.undo.name for saga in SAGAS.values() for step in saga.steps if step.undo}


def of_acts() -> dict[str, set[str]]:
    """The stages that each act of the registry passes, by its name."""
    stages: dict[str, set[str]] = {name: set() for name in ACTS}
    for name in found():
        owner, _, stage = name.rpartition(".")
        if owner == "{act.name}":
            for mine in stages.values():
                mine.add(stage)
        elif owner == "{undo.name}":
            for undo in undos():
                stages[undo].add(stage)
        elif owner == "{name}":  # each call to the fakes' world
            for act in stages.keys() - ACTS_WITHOUT_A_CALL:
                stages[act].add(stage)
        elif owner in stages:
            stages[owner].add(stage)
    return stages


def all_points() -> set[str]:
    """Every failpoint by its full name."""
    acts = {f"{act}.{stage}" for act, stages in of_acts().items() for stage in stages}
    return acts | {name for name in found() if not name.startswith(GENERIC)}
