"""The example of docs/plugin-author.md keeps the contract, and is found by its entry point."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.share_driver_suite import (
    GuardThatEnds,
    ShareDriverContract,
    context,
    rule,
)
from tests.support.services import ROOT
from worker.backends import assembly as backend
from worker.config import Config, this_host
from worker.drivers.base import ShareDriver
from worker.errors import ConfigurationError, LeaseLost
from worker.model import RequestContext, Share, Snapshot

EXAMPLE = ROOT / "docs/examples/directories"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if the example were installed: its module, and the entry points that it declares."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    info = tmp_path / "site" / "sharewright_directories-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    (info / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in points.items())
            for group, points in project["entry-points"].items()
        )
    )
    monkeypatch.syspath_prepend(info.parent)
    monkeypatch.syspath_prepend(EXAMPLE)
    backend._installed.cache_clear()
    yield
    backend._installed.cache_clear()
    sys.modules.pop("directories", None)


def config(root: Path, **driver: Any) -> Config:
    return Config.model_validate(
        {
            "state_dir": root / "state",
            "backends": {
                "files": {
                    "mode": "single_svm",
                    "share_driver": "directories",
                    "host": this_host(),
                    "driver": {"root": root, "server": "files.example", **driver},
                }
            },
        }
    )


class ExternalSystem:
    """What lies under the root, without the driver."""

    holds_data = True

    def __init__(self, root: Path) -> None:
        self.root = root

    def state(self) -> Any:
        return {
            str(path.relative_to(self.root)): path.read_text() if path.is_file() else ""
            for path in self.root.glob("*/**/*")
        }

    def rules(self, share: Share) -> set[tuple[str, str]]:
        path = self.root / "shares" / f"{share.id}.rules"
        written = json.loads(path.read_text())["rules"] if path.exists() else []
        return {(client, level) for client, level in written}

    def write(self, share: Share, name: str, text: str) -> None:
        (self.root / "shares" / share.id / name).write_text(text)

    def read(self, share: Share, name: str) -> str:
        return (self.root / "shares" / share.id / name).read_text()


@pytest.mark.usefixtures("installed")
class TestDirectoryShareDriver(ShareDriverContract):
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        root = tmp_path / "root"
        root.mkdir()
        return root

    @pytest.fixture
    def driver(self, installed: None, root: Path) -> ShareDriver:  # noqa: ARG002 - must come first
        # A driver of single_svm has no use for the address book.
        return backend.assemble(config(root), "files", addresses=None).driver  # type: ignore[arg-type] # see above

    @pytest.fixture
    def server(self) -> None:
        return None

    @pytest.fixture
    def external(self, root: Path) -> ExternalSystem:
        return ExternalSystem(root)

    @pytest.mark.parametrize("allowed", range(1, 4))
    def test_a_delete_clears_a_copy_or_rules_that_were_cut_off(
        self,
        driver: ShareDriver,
        external: ExternalSystem,
        share: Share,
        snapshot: Snapshot,
        allowed: int,
    ) -> None:
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

    def test_an_unknown_option_is_refused(self, root: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"\[backends.files.driver\].*colour"):
            backend.assemble(config(root, colour="blue"), "files", addresses=None)  # type: ignore[arg-type] # as above
