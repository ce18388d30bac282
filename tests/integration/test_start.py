"""Combinations that cannot work stop the worker at its start, with a sentence."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from scheduler.exits import EXIT_CONFIGURATION
from tests.support.pace import limit
from tests.support.services import ROOT, python
from worker.db.schema import upgrade

FLAT = """
[backends.b1]
mode = "flat_multi_svm"
share_driver = "fake"
compute_helper = "fake"
network_helpers = ["fake"]
"""

LONELY = """
from worker.drivers.fake import FakeShareDriver
from worker.model import DriverMode

class LonelyDriver(FakeShareDriver):
    modes = frozenset({DriverMode.SINGLE_SVM})
"""


def install(directory: Path) -> None:
    """Somebody else's package with a driver for one mode only."""
    (directory / "lonely.py").write_text(LONELY)
    about = directory / "lonely-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: lonely\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[sharewright.share_drivers]\nlonely = lonely:LonelyDriver\n"
    )


def start(
    directory: Path, backend: str, *arguments: str, host: str = "here"
) -> subprocess.CompletedProcess[str]:
    """``sharewright worker`` to its end; no broker listens: nothing may be consumed before."""
    config = directory / "sharewright.toml"
    config.write_text(
        f'state_dir = "{directory}"\n'
        f'[database]\nurl = "sqlite:///{directory / "sw.db"}"\n'
        '[broker]\nurl = "redis://127.0.0.1:1/0"\nresult_backend = "redis://127.0.0.1:1/1"\n'
        f"{backend}"
    )
    return subprocess.run(
        python("scheduler.cli", "worker", *arguments),
        cwd=ROOT,
        env={
            **os.environ,
            "SHAREWRIGHT_CONFIG": str(config),
            "SHAREWRIGHT_HOST": host,
            "PYTHONPATH": os.pathsep.join([str(directory), os.environ.get("PYTHONPATH", "")]),
        },
        capture_output=True,
        text=True,
        timeout=limit(),
        check=False,
    )


@pytest.mark.parametrize(
    ("backend", "arguments", "sentence"),
    [
        pytest.param(
            FLAT,
            ("--pool", "threads"),
            "The pool 'threads' cannot be used: steps are leased one a process; choose prefork "
            "or solo.",
            id="a pool of threads",
        ),
        pytest.param(
            FLAT, ("--pool", "gevent"), "The pool 'gevent' cannot be used", id="a pool of greenlets"
        ),
        pytest.param(
            FLAT,
            ("--group", "gold"),
            "No backend belongs to worker group 'gold'; the configuration has: default.",
            id="a group with no backend",
        ),
        pytest.param(
            '[backends.b1]\nmode = "single_svm"\nshare_driver = "generic"\nhost = "elsewhere"\n',
            ("--group", "host.elsewhere"),
            "it is bound to host 'elsewhere' by GenericShareDriver, and this is 'here'; run the "
            "workers of group 'host.elsewhere' there.",
            id="a host-bound driver on another host",
        ),
        pytest.param(
            FLAT.replace('compute_helper = "fake"\n', ""),
            (),
            "mode flat_multi_svm makes share servers; name a compute_helper.",
            id="no compute helper",
        ),
        pytest.param(
            FLAT.replace("flat_multi_svm", "single_svm"),
            (),
            "leave compute_helper and network_helpers out",
            id="superfluous helpers",
        ),
        pytest.param(
            FLAT.replace('share_driver = "fake"', 'share_driver = "lonely"'),
            (),
            "share driver 'lonely' does not support mode flat_multi_svm; it supports single_svm.",
            id="a mode that the driver has not",
        ),
        pytest.param(
            FLAT.replace("flat_multi_svm", "managed_multi_svm").replace(
                'helpers = ["fake"]', 'helpers = ["flat_network"]'
            ),
            (),
            "network helper 'flat_network' does not support mode managed_multi_svm.",
            id="a mode that a helper has not",
        ),
        pytest.param(
            FLAT + "[backends.b1.driver]\ncolour = 1\n",
            (),
            "colour: is not known; check its spelling",
            id="an unknown option",
        ),
        pytest.param(
            FLAT + "colour = 1\n", (), "backends.b1.colour", id="an unknown setting of a backend"
        ),
        pytest.param(
            FLAT.replace('"fake"\ncompute', '"nonsense"\ncompute'),
            (),
            "there is no share driver 'nonsense'",
            id="an unknown driver",
        ),
        pytest.param(
            FLAT.replace("flat_multi_svm", "dhss_true"), (), "backends.b1.mode", id="no such mode"
        ),
    ],
)
def test_refused_at_the_start(
    tmp_path: Path, backend: str, arguments: tuple[str, ...], sentence: str
) -> None:
    upgrade(f"sqlite:///{tmp_path / 'sw.db'}")
    install(tmp_path)
    ended = start(tmp_path, backend, *arguments)
    assert ended.returncode == EXIT_CONFIGURATION, ended.stderr
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not ended.stdout
    # One sentence; a configuration that is no configuration has a heading and a line a problem.
    assert len(ended.stderr.strip().splitlines()) <= 2


def test_no_configuration_at_all(tmp_path: Path) -> None:
    ended = subprocess.run(
        python("scheduler.cli", "worker"),
        cwd=ROOT,
        env={**os.environ, "SHAREWRIGHT_CONFIG": str(tmp_path / "nowhere.toml")},
        capture_output=True,
        text=True,
        timeout=limit(),
        check=False,
    )
    assert ended.returncode == EXIT_CONFIGURATION
    assert "nowhere.toml" in ended.stderr
    assert "Traceback" not in ended.stderr
