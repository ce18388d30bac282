"""Producers that are not ours: other versions of Celery, and Node.js, with their own packages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from tests.support import venv
from tests.support.pace import limit
from tests.support.services import ROOT

RECIPES: Final = ROOT / "tests" / "producers"


class Redis(Protocol):
    """A Redis as a producer sees it."""

    def url(self, database: int = 0) -> str:
        """Return the URL of one of its databases."""


def celery_producer(version: str) -> tuple[str, ...]:
    """Return the command of a producer with this Celery; ``installed`` is the tests' own."""
    script = str(RECIPES / "plain.py")
    if version == "installed":
        return (sys.executable, script)
    with venv.locked(f"celery-{version}"):
        return (str(venv.install(RECIPES / f"celery-{version}.txt") / "python"), script)


def node_producer() -> tuple[str, ...]:
    """Return the command of a producer with celery-node."""
    return (str(node_programs() / "node"), str(node_modules() / "celery_node.js"))


def node_programs() -> Path:
    """Install Node.js, from a wheel of PyPI; return its directory of programs."""
    with venv.locked("node"):
        return venv.install(RECIPES / "node.txt")


def node_modules() -> Path:
    """Install the packages that producers in JavaScript need; return where they can be used."""
    lock = RECIPES / "node" / "package-lock.json"
    script = RECIPES / "celery_node.js"
    programs = node_programs()
    with venv.locked("node"):
        made = venv.cache("node", lock, script)
        if not (made / ".complete").exists():
            shutil.rmtree(made, ignore_errors=True)
            shutil.copytree(lock.parent, made)
            shutil.copy(script, made)
            venv.run_or_skip(
                (
                    *(str(programs / "npm"), "ci", "--ignore-scripts", "--no-audit"),
                    *("--no-fund", "--no-update-notifier"),
                ),
                directory=made,
                path=f"{programs}{os.pathsep}{os.environ['PATH']}",
            )
            (made / ".complete").touch()
    return made


def produce(
    command: Sequence[str],
    redis: Redis,
    requests: Sequence[Sequence[Any]],
    transport_options: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Send requests (task, payload, options) and return what the producer was told of each."""
    done = subprocess.run(
        (*command, redis.url(), redis.url(1), json.dumps(transport_options or {})),
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        timeout=limit(),
        check=False,
        # Where no Sharewright can be imported from.
        cwd=RECIPES,
        env={"PATH": os.environ["PATH"]},
    )
    if done.returncode:
        raise AssertionError(done.stderr)
    told: list[dict[str, Any]] = json.loads(done.stdout)
    return told
