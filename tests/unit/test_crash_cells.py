"""The crash matrix forgets nothing: checked against the registry and the source."""

from __future__ import annotations

import pytest

from tests.crash.matrix import cells
from tests.crash.matrix.points import of_actions
from worker.tasks.sagas import ACTIONS, SAGAS


@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_every_step_and_compensation_has_its_failpoints(action: str) -> None:
    wanted = {"before", "after_effect", "after_commit", "after_publish"}
    assert wanted <= of_actions()[action]


def test_every_failpoint_is_in_the_matrix_or_somewhere_else_by_name() -> None:
    assert cells.forgotten() == set()


def test_every_step_and_undo_of_every_saga_is_hit() -> None:
    hit = {
        (cell.verb.compensation_of is not None, cell.point.partition(".")[0]) for cell in cells.ALL
    }
    steps = [step for saga in SAGAS for step in saga.steps]
    for step in steps:
        assert (False, step.do.name) in hit or cells.elsewhere(f"{step.do.name}.before")
        assert step.compensation is None or (True, step.compensation.name) in hit


def test_there_are_enough_runs_and_each_is_named_once() -> None:
    assert len(cells.ALL) >= 1500
    assert len(cells.BY_NAME) == len(cells.ALL)


def test_the_sample_is_fair_and_always_the_same() -> None:
    sample = cells.sample()
    assert sample == cells.sample()
    for what in (lambda c: c.point, lambda c: c.fault, lambda c: c.verb.action):
        assert {what(cell) for cell in sample} == {what(cell) for cell in cells.ALL}
