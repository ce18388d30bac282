"""What the real data path needs: missing, its tests skip locally and fail where CI=true."""

from __future__ import annotations

import ctypes.util
import os
import shutil
from pathlib import Path

import pytest

COMMANDS = (
    "ganesha.nfsd",
    "ip",
    "nsenter",
    "mkfs.btrfs",
    "mkfs.ext4",
    "mkfs.xfs",
    "flock",
    "pgrep",
)


def missing_for_datapath() -> list[str]:
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in COMMANDS if shutil.which(name, path=path) is None]
    if os.geteuid() != 0:
        missing.append("root")
    if ctypes.util.find_library("nfs") is None and not list(
        Path("/usr/lib").glob("*/libnfs.so.13")
    ):
        missing.append("libnfs13")
    return missing


def require_root_datapath() -> None:
    if missing := missing_for_datapath():
        sentence = f"the real data path cannot be tested without: {', '.join(missing)}"
        if os.environ.get("CI") == "true":
            pytest.fail(sentence)
        pytest.skip(sentence)
