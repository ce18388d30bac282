"""A Python that has everything that is installed here but Sharewright: a producer's own."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.support.pace import limit

_OURS: Final = ("worker", "scheduler", "sharewright", "__editable__")
_RUN: Final = """
import importlib.util, runpy, sys
sys.path.append(sys.argv.pop(1))
assert not any(map(importlib.util.find_spec, ("worker", "scheduler"))), "Sharewright is here"
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_plain(
    script: Path,
    *arguments: str,
    directory: Path,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run a script with no Sharewright to import; ``directory`` is the test's own."""
    packages = directory / "site-packages"
    if not packages.exists():
        packages.mkdir()
        for path in sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}):
            for entry in Path(path).iterdir():
                if not entry.name.startswith(_OURS) and entry.suffix != ".pth":
                    (packages / entry.name).symlink_to(entry)
    return subprocess.run(
        (sys.executable, "-I", "-S", "-c", _RUN, str(packages), str(script), *arguments),
        cwd=directory,
        input=stdin,
        env={"PATH": os.environ["PATH"], **(env or {})},
        capture_output=True,
        text=True,
        timeout=limit(),
        check=False,
    )
