"""The contract, on directories: the suite inherited, and how it looks behind the driver."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from directories import DirectoryOptions, DirectoryShareDriver

from worker.errors import LeaseLost
from worker.model import DriverMode, RequestContext, Share, Snapshot
from worker.plugin import BackendContext
from worker.systems.shell.local import LocalShell
from worker.testing.calls import GuardThatEnds, context, rule
from worker.testing.share_driver import ShareDriverContract


class ExternalSystem:
    """What lies under the root, seen without the driver."""

    holds_data = True

    def __init__(self, root: Path) -> None:
        self.root = root

    def state(self) -> Any:
        """Every path with its content."""
        return {
            str(path.relative_to(self.root)): path.read_text() if path.is_file() else ""
            for path in self.root.glob("*/**/*")
        }

    def rules(self, share: Share) -> set[tuple[str, str]]:
        """The rules of the file; none where there is no file yet."""
        path = self.root / "shares" / f"{share.id}.rules"
        written = json.loads(path.read_text())["rules"] if path.exists() else []
        return {(client, level) for client, level in written}

    def write(self, share: Share, name: str, text: str) -> None:
        """Write into the share's directory."""
        (self.root / "shares" / share.id / name).write_text(text)

    def read(self, share: Share, name: str) -> str:
        """Read from the share's directory."""
        return (self.root / "shares" / share.id / name).read_text()

    def reboot(self) -> None:
        """Never called: the driver lacks the capability Ensure."""


class TestDirectoryShareDriver(ShareDriverContract):
    """Every test of the suite, and one of our own."""

    @pytest.fixture
    def external(self, tmp_path: Path) -> ExternalSystem:
        """An empty root."""
        root = tmp_path / "root"
        root.mkdir()
        return ExternalSystem(root)

    @pytest.fixture
    def driver(self, external: ExternalSystem, tmp_path: Path) -> DirectoryShareDriver:
        """The driver, constructed as a worker does."""
        backend = BackendContext("files", DriverMode.SINGLE_SVM, tmp_path / "state")
        options = DirectoryOptions(root=external.root, server="files.example")
        return DirectoryShareDriver(backend, options, lambda _: LocalShell())

    @pytest.fixture
    def server(self) -> None:
        """In single_svm there is no share server."""

    @pytest.mark.parametrize("allowed", range(1, 4))
    def test_a_delete_clears_a_copy_or_rules_that_were_cut_off(
        self,
        driver: DirectoryShareDriver,
        external: ExternalSystem,
        share: Share,
        snapshot: Snapshot,
        allowed: int,
    ) -> None:
        """Whatever a dead worker left half made."""
        driver.create_share(context(), share, None)
        calls: tuple[Callable[[RequestContext], None], ...] = (
            lambda given: driver.create_snapshot(given, snapshot, share, None),
            lambda given: driver.update_access(given, share, None, [rule("10.1.0.1")], 1),
        )
        for call in calls:
            try:
                call(context(GuardThatEnds(allowed)))
            except LeaseLost:
                continue
        driver.delete_snapshot(context(), snapshot, share, None)
        driver.delete_share(context(), share, None)
        assert external.state() == {}
