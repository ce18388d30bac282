"""Machines behind SSH: a network namespace with a real sshd stands in for a service VM.

The host reaches them over a bridge, on which clients can be put as well. Their files lie in a
directory of the test's own; what a first boot makes of the user data is done here by hand.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh
import psutil

from tests.services import Process, alive, require, require_root, wait_until
from tests.tenants import Tenant, run
from worker.helpers.compute.ssh_servers import SshOptions, ssh_attributes
from worker.model import ServerStatus, ShareServer, ShareServerDetails
from worker.systems.ssh import SshShell, private_key
from worker.systems.user_data import host_key_pair

_SUBNET = os.getpid() % 8192
BASE = f"198.{18 + _SUBNET // 4096}.{_SUBNET // 16 % 256}.{_SUBNET % 16 * 16}"
"""A /28 of the range for benchmarks (RFC 2544) that no other test run at the same time has."""
_CONFIGURATION = """
ListenAddress {address}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
# A shell that is told by sshd to run one command reads the developer's own start files.
SetEnv HOME=/
"""


def address_of(number: int) -> str:
    """The address of a machine or client (1 to 14; the host has 1)."""
    head, _, last = BASE.rpartition(".")
    return f"{head}.{int(last) + number}"


@dataclass
class Machine:
    """One machine; ``server_id`` is the share server that it is booted as."""

    server_id: str
    directory: Path
    key_file: Path
    net: Tenant
    address: str
    sshd: Process = field(init=False)

    def __post_init__(self) -> None:
        self.directory.mkdir()
        (self.directory / "authorized_keys").write_bytes(
            private_key(self.key_file).export_public_key()
        )
        (self.directory / "sshd_config").write_text(
            _CONFIGURATION.format(address=self.address, directory=self.directory)
        )
        self.install(host_key_pair(self.key_file, self.server_id)[0])
        # Without it sshd does not start; the service would make it.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        configuration = str(self.directory / "sshd_config")
        self.sshd = Process(
            self.net.command(require("sshd"), "-D", "-e", "-f", configuration),
            log=self.directory / "sshd.log",
        )

    def install(self, host_key: str) -> None:
        """Give it a host key, which the next start of sshd takes."""
        file = self.directory / "host_key"
        file.unlink(missing_ok=True)
        file.touch(mode=0o600)
        file.write_text(host_key)

    def start(self) -> None:
        """Start sshd."""
        self.sshd.start(self._answers)

    def connections(self) -> list[int]:
        """The processes that hold the connections."""
        return [pid for pid in self._pids("sshd") if pid != self.sshd.pid]

    def drop_connections(self) -> None:
        """Kill the processes that hold the connections, not the commands that run."""
        self._end(self.connections())

    def kill(self) -> None:
        """Kill sshd and all connections; commands that run go on."""
        self.sshd.close()
        self._end(self._pids("sshd"))

    def close(self) -> None:
        """End it with all that runs in it."""
        self.sshd.close()
        self._end(self._pids())
        self.net.close()

    def _pids(self, name: str = "") -> list[int]:
        pids = map(int, run("ip", "netns", "pids", self.net.namespace).split())
        return [pid for pid in pids if not name or _name(pid) == name]

    @staticmethod
    def _end(pids: Sequence[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(map(alive, pids)), "what was killed is gone")

    def shell(self, **changes: Any) -> SshShell:
        """A shell on it."""
        given: dict[str, Any] = {
            "name": f"share server {self.server_id}",
            "host": self.address,
            "port": 22,
            "user": "root",
            "host_key": host_key_pair(self.key_file, self.server_id)[1],
            "private_key_file": self.key_file,
        }
        return SshShell(**{**given, **changes})

    @property
    def options(self) -> SshOptions:
        """What a compute helper of such machines would be configured with."""
        return SshOptions(
            ssh_private_key_file=self.key_file, server_directory=str(self.directory / "var")
        )

    def server(self) -> ShareServer:
        """The share server that it is, as a compute helper would have built it."""
        attributes = ssh_attributes(self.options, self.server_id, address=self.address)
        details = ShareServerDetails(self.server_id, (self.address,), attributes)
        return ShareServer(
            self.server_id, "project", "backend", "network", ServerStatus.ACTIVE, details=details
        )

    def _answers(self) -> bool:
        try:
            socket.create_connection((self.address, 22), 1).close()
        except OSError:
            return False
        return True


def _name(pid: int) -> str:
    try:
        return str(psutil.Process(pid).name())
    except psutil.NoSuchProcess:
        return ""


@dataclass
class Lan:
    """A bridge that the host has an address on, and the machines and clients on it."""

    directory: Path
    bridge: str = f"sws{_SUBNET}"
    taken: int = 1
    members: list[Machine | Tenant] = field(default_factory=list)

    @classmethod
    @contextlib.contextmanager
    def made(cls, directory: Path) -> Iterator[Lan]:
        """Make one; ends with everything on it."""
        require_root()
        lan = cls(directory)
        asyncssh.generate_private_key("ssh-ed25519").write_private_key(directory / "key")
        run("ip", "link", "add", "name", lan.bridge, "type", "bridge")
        try:
            run("ip", "address", "add", f"{address_of(1)}/28", "dev", lan.bridge)
            run("ip", "link", "set", "dev", lan.bridge, "up")
            yield lan
        finally:
            for member in lan.members:
                member.close()
            run("ip", "link", "del", "dev", lan.bridge)

    def client(self) -> Tenant:
        """A further client."""
        self.taken += 1
        client = Tenant.make(self.bridge, f"{address_of(self.taken)}/28")
        self.members.append(client)
        return client

    def machine(self, server_id: str) -> Machine:
        """A further machine, booted; sshd runs."""
        net = self.client()
        self.members.remove(net)
        machine = Machine(
            server_id,
            self.directory / server_id,
            self.directory / "key",
            net,
            address_of(self.taken),
        )
        self.members.append(machine)
        machine.start()
        return machine
