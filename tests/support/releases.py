"""Trees of other releases, taken from the history, whose processes run beside those of this one."""

from __future__ import annotations

import io
import subprocess
import tarfile
import tomllib
from pathlib import Path
from typing import Final

from tests.support.services import ROOT, Process, missing, python

FIRST: Final = "257637c45f07b86603bff6318055a2a9ff792164"
"""The commit that CI upgrades from: the first one whose database is upgraded, not made anew."""


class Release:
    """One release's code, from which commands and processes are started."""

    def __init__(self, directory: Path, commit: str) -> None:
        """Unpack the code of ``commit``; skip (fail in CI) where the history is not there."""
        packed = subprocess.run(
            ("git", "archive", commit, "worker", "scheduler", "pyproject.toml"),
            cwd=ROOT,
            capture_output=True,
            check=False,
        )
        if packed.returncode:
            missing(f"The history has no commit {commit}: {packed.stderr.decode().strip()}")
        self.directory = directory
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(directory, filter="data")
        self._describe()

    def _describe(self) -> None:
        """Write the metadata of an installed distribution: plug-ins are found by it."""
        project = tomllib.loads((self.directory / "pyproject.toml").read_text())["project"]
        info = self.directory / f"{project['name']}-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        groups = project["entry-points"].items()
        (info / "entry_points.txt").write_text(
            "".join(
                f"[{group}]\n" + "".join(f"{name} = {place}\n" for name, place in plugins.items())
                for group, plugins in groups
            )
        )

    @property
    def env(self) -> dict[str, str]:
        """The environment in which this release's modules come first."""
        return {"PYTHONPATH": str(self.directory), "PYTHONSAFEPATH": "1"}

    def process(self, *words: str, log: Path, env: dict[str, str]) -> Process:
        """Return this release's command as a process that is not started yet."""
        return Process(python("scheduler.cli", *words), log=log, env={**self.env, **env})
