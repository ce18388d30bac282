"""Define sagas from steps and actions, without Celery and without the database.

A saga is an ordered tuple of steps. Each step is either *undoable* (it has an action and a
compensation) or *forward-only* (it has an action and the reason why nothing compensates it). An
undoable step must not follow a forward-only one: if it failed, the forward-only step would have
to be undone. Both rules are checked when a saga is defined, at import.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

OnCommit = Callable[[Any], None]
"""Writes an action's outcome; gets the :class:`~worker.engine.job.StepTransaction` that ends the
step."""


@dataclass(frozen=True, slots=True)
class StepWaiting:
    """The result of a step that waits for another operation.

    ``waits_for`` is the key that ends the wait; after ``recheck`` seconds the step runs again even
    without a wake-up. :meth:`~worker.engine.job.Job.transaction` writes the wait in the transaction
    that found it necessary, so that no wake-up is missed.
    """

    message: str
    waits_for: str
    recheck: float


@dataclass(frozen=True, slots=True)
class StepCommitted:
    """The result of a step that has already ended in a transaction of its own, ``tx``.

    An action returns it when there is nothing to do on external systems.
    """

    tx: Any


StepResult = OnCommit | StepWaiting | StepCommitted | None
Run = Callable[[Any], StepResult]
"""An action's body: gets the :class:`~worker.engine.job.Job`, works on external systems, and
returns what to write."""


@dataclass(frozen=True, slots=True)
class Unsettled:
    """The result of an ``on_failure`` that cannot tell yet what the failure did to the object.

    ``commit`` writes what is known so far. The action is then run again at long intervals until it
    succeeds; it finds the operation's error set and so knows that it runs after a failure.
    """

    commit: OnCommit


OnFailure = Callable[[Any, Any], OnCommit | Unsettled | None]
"""Decides what the failure of a forward-only action changes on its object.

Gets the job and the :class:`~worker.errors.StepError`, and returns what to write."""


@dataclass(frozen=True, slots=True)
class Action:
    """The work of one Celery task, which is named ``sharewright.<name>``.

    ``timeout`` is the longest time that it may take, in seconds; after that its lease is not
    renewed.
    """

    name: str
    run: Run
    timeout: float


@dataclass(frozen=True, slots=True)
class Step:
    """An action and its compensation; created by :func:`undoable` or :func:`forward_only`."""

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
    """Return a step that ``compensation`` undoes."""
    return Step(do, compensation=compensation)


def forward_only(
    do: Action, *, because: str, on_failure: OnFailure, keeps_trying: bool = False
) -> Step:
    """Return a step that cannot be undone, because of ``because``.

    When the step has failed, ``on_failure`` returns what to write to the object. With
    ``keeps_trying`` the action is then retried at long intervals until it succeeds, as a deletion
    must be; otherwise the operation ends there.
    """
    return Step(do, because=because, on_failure=on_failure, keeps_trying=keeps_trying)


@dataclass(frozen=True, slots=True)
class Saga:
    """The steps of an operation, in order.

    ``failed`` writes the failure to the object. It gets the open transaction, the error (JSON-safe)
    and whether everything was undone. It runs with True in the transaction that ends the last
    compensation, and with False in one that stops retrying a compensation at the usual pace.

    An operation keeps the version that it was accepted with. To change a saga's steps, add a
    version, and keep the old one for as long as an operation may carry it.
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
        """Return the step that a task runs or compensates; None when the saga has no such task."""
        for position, action in self._path(undoing=undoing):
            if action.name == task:
                return self.steps[position]
        return None

    def chain(self, task: str, *, undoing: bool) -> tuple[Action, ...]:
        """Return the actions from a task to the end in its direction; empty for an unknown task."""
        actions = [action for _, action in self._path(undoing=undoing)]
        names = [action.name for action in actions]
        return tuple(actions[names.index(task) :]) if task in names else ()

    def following(self, task: str, *, undoing: bool) -> tuple[int, Action] | None:
        """Return the position and the action after a task in its direction; None after the last."""
        path = self._path(undoing=undoing)
        for (_, action), following in itertools.pairwise(path):
            if action.name == task:
                return following
        return None

    def previous(self, task: str, *, undoing: bool) -> Action | None:
        """Return the action before a task in its direction; None before the first."""
        path = self._path(undoing=undoing)
        for (_, previous), (_, action) in itertools.pairwise(path):
            if action.name == task:
                return previous
        return None

    def actions(self) -> tuple[Action, ...]:
        """Return every action and compensation of this saga."""
        both = self._path(undoing=False) + self._path(undoing=True)
        return tuple(action for _, action in both)

    def _path(self, *, undoing: bool) -> list[tuple[int, Action]]:
        """Return the actions of one direction in order, each with its step's position."""
        if not undoing:
            return [(position, step.do) for position, step in enumerate(self.steps)]
        return [
            (position, step.compensation)
            for position, step in reversed(list(enumerate(self.steps)))
            if step.compensation is not None
        ]


class Sagas:
    """All versions of all sagas that an operation may carry."""

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
        """Return the version of a saga that new operations get."""
        return self._newest[name]

    def find(self, name: str, version: int) -> Saga | None:
        """Return a version of a saga; None when this release does not know it."""
        return self._known.get((name, version))

    @property
    def versions(self) -> list[tuple[str, int]]:
        """The names and versions of all sagas."""
        return list(self._known)

    @property
    def actions(self) -> Mapping[str, Action]:
        """All actions by name."""
        return self._actions
