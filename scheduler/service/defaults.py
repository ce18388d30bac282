"""The configuration of an embedded service whose home has no ``sharewright.toml``."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Final

from scheduler.service.home import Home
from worker.config import Config, this_host

_PROGRAMS: Final = {
    "ganesha.nfsd": "nfs-ganesha",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "losetup": "mount",
    "pgrep": "procps",
}
_FILE_SYSTEMS: Final = ("mkfs.btrfs", "mkfs.ext4")
_CAPABILITIES: Final = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}
_ADMINISTRATORS_PATH: Final = "/usr/local/sbin:/usr/sbin:/sbin"

FAKES: Final[dict[str, Any]] = {
    "health": {"port": 0},
    "backends": {
        "fake": {
            "mode": "flat_multi_svm",
            "share_driver": "fake",
            "compute_helper": "fake",
            "network_helpers": ["fake"],
            "share_network_addresses": True,
        }
    },
}
"""One backend that keeps its shares in a file and serves nothing."""


def nfs() -> dict[str, Any]:
    """One backend that serves NFS from this host."""
    return {
        "health": {"port": 0},
        "backends": {
            "local": {
                "mode": "flat_multi_svm",
                "share_driver": "generic",
                "compute_helper": "namespace",
                "network_helpers": ["flat_network"],
                "share_network_addresses": True,
                "host": this_host(),
            }
        },
    }


def missing_for_nfs() -> list[str]:
    """Say what this machine lacks for serving NFS; empty when it can."""
    lacks = [] if os.geteuid() == 0 else ["this is not root"]
    if not lacks:
        effective = _effective_capabilities()
        lacks = [
            f"root without {n}" for n, bit in _CAPABILITIES.items() if not effective >> bit & 1
        ]
    path = f"{os.environ.get('PATH', os.defpath)}:{_ADMINISTRATORS_PATH}"
    lacks += [
        f"{program} is not installed (package {package})"
        for program, package in _PROGRAMS.items()
        if shutil.which(program, path=path) is None
    ]
    if not any(shutil.which(program, path=path) for program in _FILE_SYSTEMS):
        lacks.append("neither mkfs.btrfs nor mkfs.ext4 is installed (package btrfs-progs)")
    return lacks


def _effective_capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def configuration(home: Home) -> tuple[Config, list[str]]:
    """Return a home's configuration, and what keeps its default from serving NFS.

    Raises :class:`~worker.errors.ConfigurationError`.
    """
    if home.config_path.exists():
        return home.config(), []
    lacks = missing_for_nfs()
    return home.config(FAKES if lacks else nfs()), lacks
