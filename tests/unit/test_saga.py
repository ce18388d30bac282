"""What a saga may be made of is checked when it is defined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from worker.engine.job import Job
from worker.engine.saga import Action, OnCommit, Saga, Step, forward_only, undoable
from worker.errors import StepError
from worker.tasks.sagas import ACTIONS, ALL


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


def test_forward_only_may_follow_undoable() -> None:
    saga = Saga("s", (way_back("a"), forward("b")))
    assert [one.name for one in saga.doing()] == ["a", "b"]


@pytest.mark.parametrize(
    ("position", "undone"), [(0, ["una"]), (1, ["unb", "una"]), (2, ["unc", "unb", "una"])]
)
def test_undoing_begins_with_the_failed_step(position: int, undone: list[str]) -> None:
    saga = Saga("s", (way_back("a"), way_back("b"), way_back("c")), failed=failed)
    assert [one.name for one in saga.undoing(position)] == undone


def test_doing_goes_on_from_a_position() -> None:
    saga = Saga("s", (way_back("a"), way_back("b"), way_back("c")), failed=failed)
    assert [one.name for one in saga.doing(1)] == ["b", "c"]


def test_what_cannot_be_undone_is_left_out_of_the_undo() -> None:
    saga = Saga("s", (way_back("a"), forward("b")))
    assert [one.name for one in saga.undoing(1)] == ["una"]


def test_every_name_stands_for_one_act() -> None:
    every = [one for saga in ALL for one in saga.actions()]
    assert all(ACTIONS[one.name] is one for one in every)
    assert len({saga.name for saga in ALL}) == len(ALL)


@pytest.mark.parametrize("saga", ALL, ids=lambda saga: saga.name)
def test_what_destroys_is_tried_on(saga: Saga) -> None:
    destroys = ("delete", "deny", "deallocate", "clean_up")
    if saga.name.startswith(destroys):
        assert all(step.keeps_trying for step in saga.steps)
