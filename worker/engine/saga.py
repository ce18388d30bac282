"""What an operation is made of: acts, steps, sagas. No Celery and no database in here.

A saga is an ordered tuple of steps. Each step is either *undoable* (its do and its undo stand
together) or *forward-only* (with the reason why there is no way back). No undoable step follows a
forward-only one: what could not be undone would then have to be. Both rules are checked when a
saga is defined, which is at import.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
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


@dataclass(frozen=True, slots=True)
class Unsettled:
    """What a failure means for the object cannot be told yet.

    The action is run again, at a slow pace, until it can; ``commit`` writes what is known by now.
    The operation's error is set then, so the action knows what it is run for.
    """

    commit: OnCommit


OnFailure = Callable[[Any, Any], OnCommit | Unsettled | None]
"""Decides what the failure of a forward-only action means: gets the job and the error."""


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

    An operation keeps the version that it was accepted with. Whoever changes a saga's steps adds
    a version, and keeps the former one for as long as an operation may carry it.
    """

    name: str
    steps: tuple[Step, ...]
    failed: Callable[[Any, dict[str, str], bool], None] | None = None
    version: int = 1

    def __post_init__(self) -> None:
        if not self.steps:
            raise TypeError(f"saga {self.name} has no steps")
        for undoing in (False, True):
            names = [action.name for _, action in self._path(undoing=undoing)]
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

    def step(self, task: str, *, undoing: bool) -> Step | None:
        """Return the step that a task does, or undoes; None when there is no such task."""
        for position, action in self._path(undoing=undoing):
            if action.name == task:
                return self.steps[position]
        return None

    def chain(self, task: str, *, undoing: bool) -> tuple[Action, ...]:
        """Return the actions from a task to the end, in its direction."""
        actions = [action for _, action in self._path(undoing=undoing)]
        names = [action.name for action in actions]
        return tuple(actions[names.index(task) :]) if task in names else ()

    def following(self, task: str, *, undoing: bool) -> tuple[int, Action] | None:
        """Return the position and the action after a task, in its direction."""
        path = self._path(undoing=undoing)
        for (_, action), following in itertools.pairwise(path):
            if action.name == task:
                return following
        return None

    def previous(self, task: str, *, undoing: bool) -> Action | None:
        """Return the action before a task, in its direction."""
        path = self._path(undoing=undoing)
        for (_, previous), (_, action) in itertools.pairwise(path):
            if action.name == task:
                return previous
        return None

    def actions(self) -> tuple[Action, ...]:
        """Every action that may be done for this saga."""
        both = self._path(undoing=False) + self._path(undoing=True)
        return tuple(action for _, action in both)

    def _path(self, *, undoing: bool) -> list[tuple[int, Action]]:
        """The actions of one direction in their order, each with its step's position."""
        if not undoing:
            return [(position, step.do) for position, step in enumerate(self.steps)]
        return [
            (position, step.compensation)
            for position, step in reversed(list(enumerate(self.steps)))
            if step.compensation is not None
        ]


class Sagas:
    """Every version of every saga that an operation may carry."""

    def __init__(self, sagas: Iterable[Saga]) -> None:
        self._known: dict[tuple[str, int], Saga] = {}
        self._newest: dict[str, Saga] = {}
        self._actions: dict[str, Action] = {}
        for saga in sagas:
            self._add(saga)

    def _add(self, saga: Saga) -> None:
        if (saga.name, saga.version) in self._known:
            raise TypeError(f"version {saga.version} of saga {saga.name} is defined twice")
        self._known[saga.name, saga.version] = saga
        newest = self._newest.get(saga.name)
        if newest is None or newest.version < saga.version:
            self._newest[saga.name] = saga
        for action in saga.actions():
            if self._actions.setdefault(action.name, action) is not action:
                raise TypeError(f"two actions are named {action.name}")

    def __iter__(self) -> Iterator[Saga]:
        return iter(self._known.values())

    def newest(self, name: str) -> Saga:
        """Return the version that new operations get."""
        return self._newest[name]

    def find(self, name: str, version: int) -> Saga | None:
        """Return the version that an operation carries; None when this release has it not."""
        return self._known.get((name, version))

    @property
    def versions(self) -> list[tuple[str, int]]:
        """The name and version of each."""
        return list(self._known)

    @property
    def actions(self) -> Mapping[str, Action]:
        """Every action by its name."""
        return self._actions
