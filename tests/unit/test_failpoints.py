"""Failpoints: nothing when off, exactly as often as there are tokens when on."""

from __future__ import annotations

import signal
import subprocess
import sys
import timeit
from pathlib import Path

import pytest

from tests.support.pace import limit
from tests.support.services import ROOT
from worker import failpoints
from worker.errors import Fatal, Retryable
from worker.failpoints import TOKENS_VARIABLE, VARIABLE, failpoint


@pytest.fixture
def arm(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delenv(TOKENS_VARIABLE, raising=False)
    return monkeypatch


@pytest.mark.no_cover  # the measurement of coverage would be measured
def test_free_when_off(arm: pytest.MonkeyPatch) -> None:
    arm.setattr(failpoints, "_armed", {})
    empty = min(timeit.repeat(lambda: None, number=100_000, repeat=5))
    passed = min(timeit.repeat(lambda: failpoint("create_share.before"), number=100_000, repeat=5))
    assert passed - empty < 0.1, "under a microsecond each"


@pytest.mark.parametrize(
    ("action", "error"), [("raise", Retryable), ("lost", Retryable), ("fatal", Fatal)]
)
def test_a_failure_of_the_wanted_class(
    arm: pytest.MonkeyPatch, action: str, error: type[Exception]
) -> None:
    arm.setattr(failpoints, "_armed", {"here": action})
    with pytest.raises(error, match="failpoint here"):
        failpoint("here")


def test_only_the_named_point(arm: pytest.MonkeyPatch) -> None:
    arm.setattr(failpoints, "_armed", {"here": "fatal"})
    failpoint("there")


def test_an_unknown_action_is_a_mistake_of_the_test(arm: pytest.MonkeyPatch) -> None:
    arm.setattr(failpoints, "_armed", {"here": "explode"})
    with pytest.raises(ValueError, match="unknown action 'explode'"):
        failpoint("here")


def test_as_often_as_there_are_tokens(arm: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"here@{number}").touch()
    (tmp_path / "hereafter@0").touch()
    arm.setenv(TOKENS_VARIABLE, str(tmp_path))
    arm.setattr(failpoints, "_armed", {"here": "raise"})
    fired = 0
    for _ in range(10):
        try:
            failpoint("here")
        except Retryable:
            fired += 1
    assert fired == 3
    assert [token.name for token in tmp_path.iterdir()] == ["hereafter@0"]


def test_tokens_are_shared_by_processes(arm: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"here@{number}").touch()
    code = (
        "from worker.failpoints import failpoint\n"
        "from worker.errors import Retryable\n"
        "fired = 0\n"
        "for _ in range(15):\n"
        "    try: failpoint('here')\n"
        "    except Retryable: fired += 1\n"
        "print(fired)"
    )
    arm.setenv(TOKENS_VARIABLE, str(tmp_path))
    arm.setenv(VARIABLE, " here = raise ; other=kill")
    running = [
        subprocess.Popen((sys.executable, "-c", code), cwd=ROOT, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    fired = [int(process.communicate(timeout=limit())[0]) for process in running]
    assert sum(fired) == 20
    assert not list(tmp_path.iterdir())


def test_kill_is_a_kill(arm: pytest.MonkeyPatch) -> None:
    arm.setenv(VARIABLE, "here=kill")
    code = "from worker.failpoints import failpoint; failpoint('here')"
    ended = subprocess.run((sys.executable, "-c", code), cwd=ROOT, timeout=limit(), check=False)
    assert ended.returncode == -signal.SIGKILL
