"""The example of docs/plugin-author.md, installed and tested as its author would do it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path
from typing import Final

import pytest

from tests.support.services import ROOT

EXAMPLE: Final = ROOT / "docs/examples/directories"
CONFIGURATION: Final = """
state_dir = "{root}/state"
[backends.files]
mode = "single_svm"
share_driver = "directories"
host = "here"
[backends.files.driver]
root = "{root}"
server = "files.example"
{more}
"""


class Installation:
    """A virtual environment with both wheels, and a repository of the plug-in's author."""

    def __init__(self, directory: Path) -> None:
        self.repository = directory / "repository"
        self.python = directory / "environment/bin/python"
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", self.python.parents[1]], check=True
        )
        packages = next(self.python.parents[1].glob("lib/python*/site-packages"))
        # What both depend on. Only this path is taken: not what makes our checkout importable.
        (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        shutil.copytree(EXAMPLE, self.repository)
        (self.repository / "tests/__init__.py").touch()
        source = directory / "sharewright"
        for part in ("worker", "scheduler"):
            shutil.copytree(
                ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__")
            )
        for part in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / part, source)
        shutil.copytree(EXAMPLE, directory / "example")
        for project in (source, directory / "example"):
            wheel = _wheel(project, directory / "wheels")
            shutil.unpack_archive(wheel, packages, "zip")

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTEST", "PYTHON", "SHAREWRIGHT", "COV"))
        }
        return subprocess.run(
            [self.python, *arguments],
            cwd=self.repository,
            env={**environment, "SHAREWRIGHT_HOST": "here"},
            capture_output=True,
            text=True,
            check=False,
        )

    def pytest(self, file: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "pytest", "-q", "-p", "no:cacheprovider", file)


def _wheel(project: Path, to: Path) -> Path:
    before = set(to.glob("*.whl"))
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index"]
    subprocess.run([*command, "--no-build-isolation", "-w", to, project], check=True)
    (made,) = set(to.glob("*.whl")) - before
    return made


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return Installation(tmp_path_factory.mktemp("plug-in"))


def test_no_checkout_is_there(installation: Installation) -> None:
    shown = installation.run("-c", "import worker, directories; print(worker.__file__)")
    assert shown.returncode == 0, shown.stderr
    assert Path(shown.stdout.strip()).is_relative_to(installation.python.parents[1])


def test_it_passes_the_shipped_contract(installation: Installation) -> None:
    ended = installation.pytest("tests/test_directories.py")
    assert ended.returncode == 0, ended.stdout
    assert " passed" in ended.stdout.splitlines()[-1]


def test_a_failure_of_the_suite_shows_values(installation: Installation) -> None:
    """As it does only where assertions of the installed suite are rewritten."""
    (installation.repository / "tests/test_broken.py").write_text(
        textwrap.dedent(
            """
            import itertools
            import pytest
            from .test_directories import ExternalSystem, TestDirectoryShareDriver as Contract

            class Moving(ExternalSystem):
                looks = itertools.count()

                def state(self):
                    return f"look {next(self.looks)}"

            class TestBroken(Contract):
                @pytest.fixture
                def external(self, tmp_path):
                    (tmp_path / "root").mkdir()
                    return Moving(tmp_path / "root")

            del Contract
            """
        )
    )
    ended = installation.pytest("tests/test_broken.py")
    assert ended.returncode == 1
    assert "assert 'look 2' == 'look 1'" in ended.stdout


@pytest.mark.parametrize(
    ("more", "expected"),
    [("", "DirectoryShareDriver"), ('colour = "blue"', "[backends.files.driver]: colour")],
)
def test_it_is_found_by_its_entry_point_and_its_options_are_checked(
    installation: Installation, more: str, expected: str
) -> None:
    settings = installation.repository / "sharewright.toml"
    settings.write_text(CONFIGURATION.format(root=installation.repository, more=more))
    script = """
import pathlib, sys
from worker.backends.assembly import assemble
from worker.config import load
from worker.errors import ConfigurationError
try:
    print(type(assemble(load(pathlib.Path(sys.argv[1])), "files", addresses=None).driver).__name__)
except ConfigurationError as error:
    print(error)
"""
    shown = installation.run("-c", script, str(settings))
    assert expected in shown.stdout, shown.stderr
