"""The documentation says what the code says, and its links lead somewhere."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from scheduler.cli import cli
from tests.support.services import ROOT
from worker.db.tables.all import metadata

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
_FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\((?!https?://)([^)\s#]*)(?:#([^)\s]+))?\)")


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    text = _FENCED.sub("", page.read_text())
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


def dead_links(page: Path) -> list[str]:
    dead = []
    for path, anchor in _LINK.findall(_FENCED.sub("", page.read_text())):
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            dead.append(path)
        elif anchor and anchor not in anchors(target):
            dead.append(f"{path}#{anchor}")
    return dead


def names_in(page: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", (ROOT / "docs" / page).read_text()))


def test_generated_sections_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (
        f"Run `python docs/generate.py`; out of date: {done.stdout}{done.stderr}"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert dead_links(page) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A heading\n[a](#a-heading) [b](#none) [c](gone.md) [d](page.md#none)\n")
    assert dead_links(page) == ["#none", "gone.md", "page.md#none"]


def test_every_page_is_listed() -> None:
    listed = set()
    for index in (ROOT / "docs/README.md", ROOT / "docs/plugins/README.md"):
        links = [path for path, _ in _LINK.findall(index.read_text()) if path]
        listed |= {(index.parent / path).resolve() for path in links} | {index}
    assert [page for page in (ROOT / "docs").rglob("*.md") if page not in listed] == []


def test_every_plugin_has_a_page_with_its_options() -> None:
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    for group in ("share_drivers", "compute_helpers", "network_helpers"):
        for name in points[f"sharewright.{group}"]:
            section = f"options-{group.removesuffix('s')}-{name}".replace("_", "-")
            page = ROOT / "docs/plugins" / f"{name}.md"
            assert f"<!-- generated: {section} -->" in page.read_text()


def test_examples_of_configuration_can_be_read() -> None:
    blocks = [
        (page, block)
        for page in PAGES
        for block in re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    ]
    assert len(blocks) > 10
    for _, block in blocks:
        tomllib.loads(block)


UNITS = sorted((ROOT / "docs/examples/systemd").glob("*.service"))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_systemd_unit_starts_what_the_command_has(unit: Path) -> None:
    document = configparser.ConfigParser(interpolation=None)
    document.read(unit)
    program, name, *arguments = shlex.split(document["Service"]["ExecStart"])
    assert program.endswith("/bin/sharewright")
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    command.make_context(name, arguments)  # raises for an option that is not there
    assert unit.name in (ROOT / "docs/how-to/systemd.md").read_text().replace("GROUP", "")


def test_every_unit_is_described() -> None:
    assert len(UNITS) == 6


def test_every_table_is_described() -> None:
    assert set(metadata.tables) <= names_in("reference/tables.md")


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = list(project["project"]["dependencies"])
    for extra in project["project"]["optional-dependencies"].values():
        wanted += extra
    for group in project["dependency-groups"].values():
        wanted += [entry for entry in group if isinstance(entry, str)]
    names = {re.split(r"[\[<>=; ]", requirement, maxsplit=1)[0] for requirement in wanted}
    assert names <= names_in("reference/dependencies.md")


def test_every_debian_package_has_its_reason() -> None:
    setup = (ROOT / ".ci/setup").read_text()
    lists = re.findall(r'^\w+_packages="([^"]+)"', setup, re.MULTILINE)
    assert len(lists) == 2
    packages = {name for names in lists for name in names.split()}
    assert packages <= names_in("reference/dependencies.md")
    assert packages <= names_in("how-to/install.md")
