"""What an operation is made of: acts, steps, sagas. No Celery and no database in here.

A saga is an ordered tuple of steps. Each step is either *undoable* (its do and its undo stand
together) or *forward-only* (with the reason why there is no way back). No undoable step follows a
forward-only one: what could not be undone would then have to be. Both rules are checked when a
saga is defined, which is at import.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

OnCommit = Callable[[Any], None]
"""Writes an action's outcome in the transaction that ends the step; gets that transaction."""


@dataclass(frozen=True, slots=True)
class StepWaiting:
    """The step waits, which was written in a transaction of its own: no wake-up is missed.

    ``waits_for`` is the key that ends the wait; after ``recheck`` seconds the step looks again.
    """

    message: str
    waits_for: str
    recheck: float


@dataclass(frozen=True, slots=True)
class StepCommitted:
    """The step ended with a transaction of its own, ``tx``: there was nothing to do outside."""

    tx: Any


StepResult = OnCommit | StepWaiting | StepCommitted | None
Run = Callable[[Any], StepResult]
"""An action's body: gets the runner's job, acts on external systems, returns what to write."""
OnFailure = Callable[[Any, Any], OnCommit | None]
"""What to do when a forward-only act fails for good: gets the job and the error."""


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that is done by one Celery task, ``sharewright.<name>``.

    ``timeout`` in seconds is how long it may take at most; its lease is renewed no longer.
    """

    name: str
    run: Run
    timeout: float


@dataclass(frozen=True, slots=True)
class Step:
    """An act in its place in a saga; made by :func:`undoable` or :func:`forward_only`."""

    do: Action
    compensation: Action | None = None
    because: str | None = None
    on_failure: OnFailure | None = None
    keeps_trying: bool = False

    def __post_init__(self) -> None:
        if (self.compensation is None) == (self.because is None):
            raise TypeError(
                f"step {self.do.name} needs either an undo or the reason why it has none"
            )


def undoable(do: Action, compensation: Action) -> Step:
    """A step with a way back."""
    return Step(do, compensation=compensation)


def forward_only(
    do: Action, *, because: str, on_failure: OnFailure, keeps_trying: bool = False
) -> Step:
    """A step with no way back, and the reason.

    ``on_failure`` writes what the failure means for the object. With ``keeps_trying`` the act is
    then tried on at a slow pace until it succeeds (what destroys must end); otherwise the
    operation ends there.
    """
    return Step(do, because=because, on_failure=on_failure, keeps_trying=keeps_trying)


@dataclass(frozen=True, slots=True)
class Saga:
    """The steps that make an operation.

    ``failed`` writes what the failure means for the object. It gets the open writing, the error
    (JSON-safe), and whether all was undone: it runs in the transaction that finishes the last
    undo, and before that in the one which gives an undo up for now.
    """

    name: str
    steps: tuple[Step, ...]
    failed: Callable[[Any, dict[str, str], bool], None] | None = None
    version: int = 1

    def __post_init__(self) -> None:
        if not self.steps:
            raise TypeError(f"saga {self.name} has no steps")
        names = [step.do.name for step in self.steps]
        if len(set(names)) != len(names):
            raise TypeError(f"saga {self.name} has a step twice")
        forward = False
        for step in self.steps:
            if step.compensation is None:
                forward = True
            elif forward:
                raise TypeError(
                    f"saga {self.name}: undoable step {step.do.name} follows a forward-only one"
                )
        if self.failed is None and not forward:
            raise TypeError(f"saga {self.name} does not say what its failure means")

    def doing(self, position: int = 0) -> tuple[Action, ...]:
        """The acts from ``position`` to the end."""
        return tuple(step.do for step in self.steps[position:])

    def undoing(self, position: int) -> tuple[Action, ...]:
        """The acts that undo the step at ``position`` and all before it, backwards."""
        return tuple(
            step.compensation
            for step in reversed(self.steps[: position + 1])
            if step.compensation is not None
        )

    def actions(self) -> tuple[Action, ...]:
        """Every act that may be done for this saga."""
        return self.doing() + self.undoing(len(self.steps) - 1)
