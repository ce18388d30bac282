"""What a saga may be made of is checked when it is defined."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from worker.engine.job import Job
from worker.engine.saga import Action, OnCommit, Saga, Sagas, Step, forward_only, undoable
from worker.errors import StepError
from worker.tasks.sagas import ALL


def action(name: str) -> Action:
    return Action(name, lambda _job: None, timeout=1)


def on_failure(_job: Job, _error: StepError) -> OnCommit | None:
    return None


def failed(_writing: Any, _error: dict[str, str]) -> None:
    return None


def forward(name: str) -> Step:
    return forward_only(action(name), because="gone is gone", on_failure=on_failure)


def way_back(name: str) -> Step:
    return undoable(action(name), action(f"un{name}"))


@pytest.mark.parametrize(
    ("define", "complaint"),
    [
        (lambda: Step(action("make")), "make needs either an undo or the reason"),
        (
            lambda: Step(action("make"), compensation=action("unmake"), because="both"),
            "make needs either an undo or the reason",
        ),
        (lambda: Saga("s", ()), "s has no steps"),
        (lambda: Saga("s", (way_back("a"), way_back("a")), failed=failed), "s has a step twice"),
        (
            lambda: Saga("s", (way_back("a"), forward("b"), way_back("c")), failed=failed),
            "undoable step c follows a forward-only one",
        ),
        (lambda: Saga("s", (way_back("a"),)), "s does not say what its failure means"),
    ],
)
def test_a_wrong_definition_is_a_type_error(define: Callable[[], object], complaint: str) -> None:
    with pytest.raises(TypeError, match=complaint):
        define()


def test_a_missing_undo_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        undoable(action("make"))  # type: ignore[call-arg] # what is tested


def test_a_missing_reason_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        forward_only(action("drop"), on_failure=on_failure)  # type: ignore[call-arg] # what is tested


def names(actions: Iterable[Action]) -> list[str]:
    return [one.name for one in actions]


def test_forward_only_may_follow_undoable() -> None:
    saga = Saga("s", (way_back("a"), forward("b")))
    assert names(saga.chain("a", undoing=False)) == ["a", "b"]


@pytest.mark.parametrize(
    ("task", "undone"),
    [("una", ["una"]), ("unb", ["unb", "una"]), ("unc", ["unc", "unb", "una"])],
)
def test_undoing_goes_backwards(task: str, undone: list[str]) -> None:
    saga = Saga("s", (way_back("a"), way_back("b"), way_back("c")), failed=failed)
    assert names(saga.chain(task, undoing=True)) == undone


def test_doing_goes_on_from_a_task() -> None:
    saga = Saga("s", (way_back("a"), way_back("b"), way_back("c")), failed=failed)
    assert names(saga.chain("b", undoing=False)) == ["b", "c"]


@pytest.mark.parametrize("undoing", [False, True])
def test_every_task_has_its_neighbours(undoing: bool) -> None:
    """A step without a way back is left out of the undo."""
    saga = Saga("s", (way_back("a"), way_back("b"), forward("c")))
    path = ["unb", "una"] if undoing else ["a", "b", "c"]
    for before, after in itertools.pairwise(path):
        following, previous = (
            saga.following(before, undoing=undoing),
            saga.previous(after, undoing=undoing),
        )
        assert following is not None
        assert previous is not None
        position, action = following
        assert (action.name, previous.name) == (after, before)
        assert saga.step(after, undoing=undoing) is saga.steps[position]
    assert saga.previous(path[0], undoing=undoing) is None
    assert saga.following(path[-1], undoing=undoing) is None


def test_a_task_of_another_version_is_not_found() -> None:
    saga = Saga("s", (way_back("a"), forward("b")))
    assert saga.step("c", undoing=False) is None
    assert saga.step("b", undoing=True) is None
    assert saga.chain("c", undoing=False) == ()
    assert saga.following("c", undoing=False) is None


def test_sagas_are_known_by_name_and_version() -> None:
    old, new = (
        Saga("s", (way_back("a"),), failed=failed),
        Saga("s", (way_back("a"), way_back("b")), failed=failed, version=2),
    )
    with pytest.raises(TypeError, match="two actions are named a"):
        Sagas([old, new])
    step = way_back("a")
    old, new = (
        Saga("s", (step,), failed=failed),
        Saga("s", (way_back("b"), step), failed=failed, version=2),
    )
    sagas = Sagas([new, old])
    assert sagas.newest("s") is new
    assert sagas.find("s", 1) is old
    assert sagas.find("s", 3) is None
    assert sagas.versions == [("s", 2), ("s", 1)]
    with pytest.raises(TypeError, match="version 1 of saga s is defined twice"):
        Sagas([old, old])


@pytest.mark.parametrize("saga", ALL, ids=lambda saga: saga.name)
def test_what_destroys_is_tried_on(saga: Saga) -> None:
    destroys = ("delete", "deny", "deallocate", "clean_up")
    if saga.name.startswith(destroys):
        assert all(step.keeps_trying for step in saga.steps)
