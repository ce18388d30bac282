"""Tenants for tests: client namespaces on a bridge, and the state of the machine to compare."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.support.pace import limit

NFS_CLIENT = Path(__file__).with_name("nfs.py")


def run(*argv: str, data: str | None = None) -> str:
    done = subprocess.run(
        argv, input=data, capture_output=True, text=True, timeout=limit(), check=False
    )
    if done.returncode:
        raise AssertionError(f"{argv} ended with {done.returncode}: {done.stderr or done.stdout}")
    return done.stdout


@dataclass(frozen=True)
class Tenant:
    """A client namespace whose ``eth0`` is a port of a bridge."""

    namespace: str
    port: str

    @classmethod
    def make(cls, bridge: str, *addresses: str) -> Tenant:
        """Attach a new client; ``addresses`` are such as ``10.0.0.5/24``."""
        short = uuid.uuid4().hex[:8]
        tenant = cls(f"swt-{short}", f"swt{short}")
        run("ip", "netns", "add", tenant.namespace)
        tenant.attach(bridge, *addresses)
        return tenant

    def attach(self, bridge: str, *addresses: str) -> None:
        run(
            *("ip", "link", "add", "name", self.port, "type", "veth"),
            *("peer", "name", "eth0", "netns", self.namespace),
        )
        run("ip", "link", "set", "dev", self.port, "master", bridge, "up")
        lines = ["link set dev lo up", "link set dev eth0 up"]
        lines += [f"address add {address} dev eth0" for address in addresses]
        run("ip", "-n", self.namespace, "-batch", "-", data="\n".join(lines) + "\n")

    def close(self) -> None:
        """Take the client away; its port may have gone already."""
        subprocess.run(
            ["ip", "-n", self.namespace, "link", "del", "dev", "eth0"],
            capture_output=True,
            check=False,
        )
        run("ip", "netns", "del", self.namespace)

    def reaches(self, address: str, port: int) -> bool:
        """Whether a TCP connection comes about within two seconds."""
        connect = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)"
        done = subprocess.run(
            self.command(sys.executable, "-c", connect, address, str(port)),
            capture_output=True,
            check=False,
        )
        return done.returncode == 0

    def command(self, *argv: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.namespace}", "--", *argv]

    def nfs(
        self, export: str, operation: str, *arguments: str, data: bytes = b""
    ) -> dict[str, Any]:
        """Do one operation on ``export`` (such as ``10.0.0.10:/shares/ID``)."""
        done = subprocess.run(
            self.nfs_command(export, operation, *arguments),
            input=data,
            capture_output=True,
            timeout=limit(),
            check=False,
        )
        assert done.stdout, done.stderr.decode()
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def nfs_command(self, export: str, operation: str, *arguments: str) -> list[str]:
        address, _, path = export.rpartition(":")
        url = f"nfs://{address}{path}"
        return self.command(sys.executable, str(NFS_CLIENT), url, operation, *arguments)


@dataclass(frozen=True)
class Machine:
    """What of a run is on this machine: one line for each thing."""

    namespaces: frozenset[str]
    links: frozenset[str]
    mounts: frozenset[str]
    loops: frozenset[str]
    processes: frozenset[str]

    @classmethod
    def look(cls, marks: Sequence[str]) -> Machine:
        """Find what bears one of ``marks``, such as a path or an id that nobody else has.

        A process bears a mark in its command line, or by having a file below a marked path open.
        """
        paths = tuple(mark for mark in marks if mark.startswith("/"))
        ids = tuple(mark for mark in marks if not mark.startswith("/"))
        # /home/a is not in /home/another.
        below = [re.compile(rf"{re.escape(path)}(?![\w.-])") for path in paths]
        everything = cls.whole()

        def marked(line: str) -> bool:
            return any(mark in line for mark in ids) or any(path.search(line) for path in below)

        return cls(
            namespaces=frozenset(filter(marked, everything.namespaces)),
            links=frozenset(filter(marked, everything.links)),
            mounts=frozenset(filter(marked, everything.mounts)),
            loops=frozenset(filter(marked, everything.loops)),
            processes=frozenset(
                line for pid, line in _processes() if marked(line) or (paths and _holds(pid, paths))
            ),
        )

    @classmethod
    def whole(cls) -> Machine:
        """Find everything, whoever has made it; each process with its pid."""
        # Read from the kernel's own files: that needs no tool and no rights.
        backing = Path("/sys/block").glob("loop*/loop/backing_file")
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        return cls(
            namespaces=frozenset(path.name for path in Path("/run/netns").glob("*")),
            links=frozenset(name for _, name in socket.if_nameindex()),
            mounts=frozenset(line.split()[1] for line in mounts),
            loops=frozenset(path.read_text().strip() for path in backing),
            processes=frozenset(f"{pid}: {line}" for pid, line in _processes()),
        )


def _processes() -> Iterator[tuple[int, str]]:
    """Give the command lines of all processes but this one; threads of the kernel have none."""
    for process in psutil.process_iter(["cmdline"]):
        if process.pid != os.getpid() and process.info["cmdline"]:
            yield process.pid, " ".join(process.info["cmdline"])


def _holds(pid: int, paths: tuple[str, ...]) -> bool:
    """Return whether a process has anything below one of ``paths`` open, or is in it."""
    process = Path(f"/proc/{pid}")
    # It may end meanwhile, or be another user's.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for link in (process / "cwd", *(process / "fd").iterdir()):
            with contextlib.suppress(FileNotFoundError):
                if any(f"{link.readlink()}/".startswith(f"{path}/") for path in paths):
                    return True
    return False
