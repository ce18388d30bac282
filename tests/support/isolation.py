"""Namespaces of a run's own (mount, network, processes): its leftovers can be told exactly there.

Inside, /run and /sys are its own too, nothing else runs, and so everything that a run made and did
not take away is seen, whether or not it can be recognised. Only loop devices are the machine's.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Final

from tests.support.pace import limit

# A copy of somebody's mount would keep its loop device, or its network namespace, busy.
_RELEASE: Final = """
while mountpoint -q /run/netns; do umount --lazy /run/netns; done
while read -r device target type rest; do
    case $device:$target:$type in
    /dev/loop*:/:* | /dev/loop*:squashfs) ;;
    /dev/loop*) umount --lazy "$target" 2>/dev/null || : ;;
    esac
done </proc/self/mounts
"""

# The shell stays as the namespace's first process: it reaps what loses its parent.
_PREPARE: Final = f"""{_RELEASE}
mount -t tmpfs tmpfs /run
mkdir /run/lock
mount -t sysfs sysfs /sys
ip link set dev lo up
ended=0
"$@" || ended=$?
exit $ended
"""


def isolated(command: Sequence[str]) -> list[str]:
    """Return the command that runs another one in namespaces of its own."""
    return [
        *("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"),
        *("sh", "-euc", _PREPARE, "isolated", *command),
    ]


def fresh(command: Sequence[str]) -> list[str]:
    """Return the command that runs another one as on a machine that never had a namespace."""
    return ["unshare", "--mount", "sh", "-euc", f'{_RELEASE}exec "$@"', "fresh", *command]


def refusal() -> str:
    """Return why namespaces cannot be made here; empty when they can."""
    try:
        tried = subprocess.run(
            isolated(["true"]), capture_output=True, text=True, timeout=limit(), check=False
        )
    except FileNotFoundError:
        return "unshare is not installed (package util-linux)"
    if tried.returncode == 0:
        return ""
    lines = tried.stderr.strip().splitlines()
    return lines[-1] if lines else f"unshare ended with {tried.returncode}"
