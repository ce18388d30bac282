"""The virtual environment that OpenStack's services run in: their needs conflict with ours.

It and the prepared databases are kept in ``.run/openstack`` under a digest of what they are made
from, so a changed recipe makes new ones and a second run starts at once.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support.services import ROOT, missing

RECIPE: Final = Path(__file__).resolve().parent
INSIDE: Final = RECIPE / "inside"
CACHE: Final = ROOT / ".run" / "openstack"
INSTALL_SECONDS: Final = 150


def cache(kind: str, *files: Path) -> Path:
    """The directory for what is made from these files with this Python."""
    digest = hashlib.sha256(sys.version.encode())
    for file in sorted(files):
        digest.update(file.read_bytes())
    return CACHE / f"{kind}-{digest.hexdigest()[:16]}"


@contextmanager
def locked(kind: str) -> Iterator[None]:
    """One test run at a time makes a thing for the cache."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def install(requirements: Path) -> Path:
    """Make the environment unless it is there; return its ``bin``."""
    venv = cache("venv", requirements)
    complete = venv / ".complete"
    if not complete.exists():
        shutil.rmtree(venv, ignore_errors=True)
        _run((sys.executable, "-m", "venv", str(venv)))
        beside = str(Path(sys.executable).parent)
        uv = shutil.which("uv", path=os.pathsep.join([beside, os.environ.get("PATH", os.defpath)]))
        python = str(venv / "bin" / "python")
        # uv is five times quicker, and does not know what a machine has set for pip alone.
        quick = (uv, "pip", "install", "-q", "--python", python, "-r", str(requirements))
        if uv is None or not _try(quick):
            _run((python, "-m", "pip", "install", "-q", "-r", str(requirements)))
        complete.touch()
    return venv / "bin"


def _try(command: tuple[str, ...]) -> bool:
    done = subprocess.run(command, check=False, capture_output=True, timeout=INSTALL_SECONDS)
    return done.returncode == 0


def _run(command: tuple[str, ...]) -> None:
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=INSTALL_SECONDS
        )
    except subprocess.TimeoutExpired:
        missing(f"OpenStack's services could not be installed within {INSTALL_SECONDS} s.")
    else:
        if done.returncode:
            missing(f"OpenStack's services could not be installed: {done.stderr[-500:]}")
