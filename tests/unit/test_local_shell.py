"""The shell on this host: the contract, its namespaces, and the guard before each change."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.shell_suite import ShellContract
from worker.errors import LeaseLost, Retryable
from worker.systems.shell.base import Guarded
from worker.systems.shell.local import LocalShell


class TestLocalShell(ShellContract):
    module = "worker.systems.shell.local"

    @pytest.fixture
    def shell(self) -> LocalShell:
        return LocalShell()


def test_a_missing_namespace_is_said() -> None:
    with pytest.raises(Retryable, match="does not exist"):
        LocalShell("sharewright-no-such-namespace").run(["true"])


def test_a_guarded_shell_asks_before_each_change(tmp_path: Path) -> None:
    def lost() -> None:
        raise LeaseLost("gone")

    shell = Guarded(LocalShell(), lost)
    target = str(tmp_path / "file")
    for call in (
        lambda: shell.run(["touch", target]),
        lambda: shell.write_file(target, "x"),
        lambda: shell.remove_file(target),
    ):
        with pytest.raises(LeaseLost):
            call()
    assert list(tmp_path.iterdir()) == []
