"""Set-up installs what pyproject.toml asks for, as it is pinned, and nothing that was changed."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from packaging.requirements import Requirement

from tests.support.services import ROOT

PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())
# Which extras and groups each file of requirements/ pins, as .ci/lock says too.
SETS: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "test": (tuple(PROJECT["project"]["optional-dependencies"]), ("dev",)),
    "docs": (tuple(PROJECT["project"]["optional-dependencies"]), ("docs",)),
    "run": (("embedded",), ("run",)),
    "image": (("flower",), ("build",)),
}
PYTHONS: Final = [
    classifier.rpartition(" ")[2]
    for classifier in PROJECT["project"]["classifiers"]
    if re.search(r":: 3\.\d+$", classifier)
]


def group(name: str) -> Iterator[str]:
    for entry in PROJECT["dependency-groups"][name]:
        if isinstance(entry, str):
            yield entry
        else:
            yield from group(entry["include-group"])


def declared(name: str) -> list[Requirement]:
    extras, groups = SETS[name]
    wanted = list(PROJECT["project"]["dependencies"])
    for extra in extras:
        wanted += PROJECT["project"]["optional-dependencies"][extra]
    for each in groups:
        wanted += group(each)
    return [Requirement(text) for text in wanted]


def pinned(name: str, folder: str = "requirements") -> list[tuple[Requirement, int]]:
    """Each pin of a set, and how many hashes it has."""
    text = (ROOT / folder / f"{name}.txt").read_text()
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", "")
    pins = []
    for line in text.splitlines():
        requirement, *hashes = line.split("--hash=sha256:")
        pins.append((Requirement(requirement), len(hashes)))
    return pins


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def environment(python: str) -> dict[str, str]:
    return {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": "linux",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }


def applies(requirement: Requirement, python: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(environment(python))


def test_the_classifiers_name_some_pythons() -> None:
    assert len(PYTHONS) >= 3


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("python", PYTHONS)
def test_what_is_declared_is_pinned_within_its_range(python: str, name: str) -> None:
    pins = {normal(pin.name): pin for pin, _ in pinned(name) if applies(pin, python)}
    for wanted in declared(name):
        if applies(wanted, python):
            pin = pins.get(normal(wanted.name))
            assert pin is not None, f"{wanted} is not pinned; run `make lock`"
            (specifier,) = pin.specifier
            assert specifier.operator == "=="
            assert wanted.specifier.contains(specifier.version), f"{pin}; run `make lock`"


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("python", PYTHONS)
def test_each_package_is_pinned_once(python: str, name: str) -> None:
    names = [normal(pin.name) for pin, _ in pinned(name) if applies(pin, python)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("folder", ["requirements", "tests/openstack"])
def test_every_pin_has_hashes_and_no_registry_is_named(folder: str) -> None:
    files = sorted((ROOT / folder).glob("*.txt"))
    assert len(files) >= 3
    for file in files:
        assert all(hashes for _, hashes in pinned(file.stem, folder)), file
        assert "://" not in file.read_text(), file


@pytest.mark.parametrize("name", SETS)
def test_the_sets_agree_about_versions(name: str) -> None:
    largest = {str(pin) for pin, _ in pinned("docs")}
    assert {str(pin) for pin, _ in pinned(name)} <= largest


def test_the_least_coverage_only_goes_up() -> None:
    history = subprocess.run(
        ["git", "log", "-p", "--format=", "-G^fail_under", "--", "pyproject.toml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    before = [
        float(figure) for figure in re.findall(r"^[+-]fail_under = (.+)$", history, re.MULTILINE)
    ]
    assert PROJECT["tool"]["coverage"]["report"]["fail_under"] >= max(before, default=0)


def test_the_hooks_before_a_commit_fetch_nothing() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in hooks["repos"]] == ["local"]
    assert {hook["language"] for hook in hooks["repos"][0]["hooks"]} == {"system"}


class Checkout:
    """A checkout whose only package comes from a folder, and whose own build needs nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / ".ci").mkdir()
        shutil.copy(ROOT / ".ci" / "setup", path / ".ci" / "setup")
        for folder in ("requirements", "wheels", "worker", "scheduler"):
            (path / folder).mkdir()
        self.wheel("ours")
        (path / "backend.py").write_text(
            "import shutil\n"
            "def build_editable(folder, config_settings=None, metadata_directory=None):\n"
            f"    shutil.copy('{path}/wheels/ours-1.0-py3-none-any.whl', folder)\n"
            "    return 'ours-1.0-py3-none-any.whl'\n"
        )
        (path / "pyproject.toml").write_text(
            "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
            "[project]\nname = 'ours'\nversion = '1.0'\n"
        )
        # No uv is to be had here, so pip has to do it all.
        (path / "requirements" / "uv.txt").write_text(f"uv==0.1 --hash=sha256:{'0' * 64}\n")

    def wheel(self, name: str) -> bytes:
        wheel = self.path / "wheels" / f"{name}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            info = f"{name}-1.0.dist-info"
            archive.writestr(f"{name}.py", "")
            archive.writestr(
                f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
            )
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
        return wheel.read_bytes()

    def pin(self, name: str, digest: str) -> None:
        (self.path / "requirements" / "run.txt").write_text(f"{name}==1.0 --hash=sha256:{digest}\n")

    def set_up(self, **env: Any) -> subprocess.CompletedProcess[str]:
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.path / "wheels")}
        return subprocess.run(
            [".ci/setup", "run"],
            cwd=self.path,
            env={**os.environ, "PYTHON": sys.executable, **offline, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def installed(self, name: str) -> bool:
        return bool(list(self.path.glob(f".venv/lib/*/site-packages/{name}.py")))


def test_set_up_refuses_a_package_whose_hash_is_another(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    right = hashlib.sha256(checkout.wheel("thing")).hexdigest()
    wrong = hashlib.sha256(b"something else").hexdigest()

    checkout.pin("thing", wrong)
    refused = checkout.set_up()
    assert refused.returncode != 0
    assert wrong in refused.stderr
    assert "could not be installed" in refused.stdout
    assert not checkout.installed("thing")

    checkout.pin("thing", right)
    done = checkout.set_up()
    assert done.returncode == 0, done.stdout + done.stderr
    assert checkout.installed("thing")
    assert checkout.installed("ours")

    again = checkout.set_up()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


def test_set_up_names_the_python_that_it_cannot_use(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    refused = checkout.set_up(PYTHON="/nowhere/python3")
    assert refused.returncode == 1
    assert "/nowhere/python3" in refused.stdout
    assert not (tmp_path / ".venv").exists()


def test_set_up_refuses_a_purpose_that_it_does_not_know() -> None:
    refused = subprocess.run(
        [str(ROOT / ".ci" / "setup"), "tests"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert "'tests' is none of: run, test, docs" in refused.stdout
