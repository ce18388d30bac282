"""Tenants for tests: client namespaces on a bridge, and the state of the machine to compare."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

NFS_CLIENT = Path(__file__).with_name("nfs.py")


def run(*argv: str, data: str | None = None, seconds: float = 60) -> str:
    done = subprocess.run(
        argv, input=data, capture_output=True, text=True, timeout=seconds, check=False
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
        self, export: str, operation: str, *arguments: str, data: bytes = b"", seconds: float = 120
    ) -> dict[str, Any]:
        """Do one operation on ``export`` (such as ``10.0.0.10:/shares/ID``)."""
        done = subprocess.run(
            self.nfs_command(export, operation, *arguments),
            input=data,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
        assert done.stdout, done.stderr.decode()
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def nfs_command(self, export: str, operation: str, *arguments: str) -> list[str]:
        address, _, path = export.rpartition(":")
        url = f"nfs://{address}{path}"
        return self.command(sys.executable, str(NFS_CLIENT), url, operation, *arguments)


OUR_PROGRAMS = ("ganesha", "redis-server", "celeryd", "scheduler.cli", "sharewright")
"""What the service starts; a machine has other things that come and go."""


def _is_ours(cmdline: list[str] | None) -> bool:
    words = " ".join(cmdline or ())
    return any(program in words for program in OUR_PROGRAMS)


@dataclass(frozen=True)
class Machine:
    """What a run must leave as it was; only what carries one of ``marks`` is looked at."""

    namespaces: frozenset[str]
    links: frozenset[str]
    mounts: frozenset[str]
    loops: frozenset[str]
    processes: frozenset[str]

    @classmethod
    def look(cls, marks: Sequence[str] = ("",)) -> Machine:
        """Look at the machine; ``marks`` tell this test's things from other runs' at once."""

        def ours(lines: Sequence[str]) -> frozenset[str]:
            return frozenset(line for line in lines if any(mark in line for mark in marks))

        # Read from the kernel's own files: that needs no tool and no rights.
        backing = Path("/sys/block").glob("loop*/loop/backing_file")
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        return cls(
            namespaces=ours([path.name for path in Path("/run/netns").glob("*")]),
            links=ours([path.name for path in Path("/sys/class/net").glob("*")]),
            mounts=ours([line.split()[1] for line in mounts]),
            loops=ours([path.read_text().strip() for path in backing]),
            processes=ours(
                [
                    " ".join(process.info["cmdline"])
                    for process in psutil.process_iter(["cmdline", "pid"])
                    if process.pid != os.getpid() and _is_ours(process.info["cmdline"])
                ]
            ),
        )
