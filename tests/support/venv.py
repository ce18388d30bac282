"""Virtual environments for what cannot share ours: OpenStack's services, old producers.

They, and what else is made once, are kept in ``.run/cache`` under a digest of what they are made
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

CACHE: Final = ROOT / ".run" / "cache"
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
        beside = str(Path(sys.executable).parent)
        uv = shutil.which("uv", path=os.pathsep.join([beside, os.environ.get("PATH", os.defpath)]))
        if uv is None or not _install_quickly(uv, venv, requirements):
            run_or_skip((sys.executable, "-m", "venv", "--clear", str(venv)))
            python = str(venv / "bin" / "python")
            run_or_skip((python, "-m", "pip", "install", "-q", "-r", str(requirements)))
        complete.touch()
    return venv / "bin"


def _install_quickly(uv: str, venv: Path, requirements: Path) -> bool:
    """Try uv: it is five times quicker, and does not know what a machine has set for pip alone."""
    make = (uv, "venv", "-q", "--python", sys.executable, str(venv))
    python = str(venv / "bin" / "python")
    install = (uv, "pip", "install", "-q", "--system-certs", "--python", python)
    return _try(make) and _try((*install, "-r", str(requirements)))


def _try(command: tuple[str, ...]) -> bool:
    done = subprocess.run(command, check=False, capture_output=True, timeout=INSTALL_SECONDS)
    return done.returncode == 0


def run_or_skip(
    command: tuple[str, ...], *, directory: Path | None = None, path: str | None = None
) -> None:
    """Run a command of an installation; see :func:`~tests.support.services.missing` if it fails."""
    environment = os.environ if path is None else {**os.environ, "PATH": path}
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            cwd=directory,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        missing(f"{command} did not end within {INSTALL_SECONDS} s.")
    else:
        if done.returncode:
            missing(f"{command} failed: {done.stderr[-500:]}")
