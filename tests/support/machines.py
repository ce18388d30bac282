"""Machines behind SSH: a network namespace with a real sshd stands in for a service VM.

The host reaches them over a bridge, on which clients can be put as well. Their files lie in a
directory of the test's own; what cloud-init does with the user data is done here.
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
import yaml

from tests.support.services import Process, alive, require, require_root, wait_until
from tests.support.tenants import Machine as Host
from tests.support.tenants import Tenant, run
from worker.helpers.compute.machines import SshOptions, boot_data, ssh_attributes
from worker.model import ServerStatus, ShareServer, ShareServerDetails
from worker.systems.openstack.cloud_init import host_key_pair
from worker.systems.shell.ssh import SshShell

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
    """One machine; ``server_id`` is the share server that it is booted as.

    Its disk is ``options.server_directory``, whose mounts go with it.
    """

    server_id: str
    directory: Path
    options: SshOptions
    net: Tenant
    address: str
    sshd: Process = field(init=False)

    def boot(self, user_data: str) -> None:
        """Do what cloud-init does before sshd starts, and start it."""
        self.directory.mkdir()
        self._told = yaml.safe_load(user_data)
        (login,) = self._told["users"]
        assert login["name"] == "root"
        keys = "\n".join(login["ssh_authorized_keys"])
        (self.directory / "authorized_keys").write_text(keys)
        (self.directory / "sshd_config").write_text(
            _CONFIGURATION.format(address=self.address, directory=self.directory)
        )
        self.install(self._told["ssh_keys"]["ed25519_private"])
        # Without it sshd does not start; the service would make it.
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        configuration = str(self.directory / "sshd_config")
        self.sshd = Process(
            self.net.command(require("sshd"), "-D", "-e", "-f", configuration),
            log=self.directory / "sshd.log",
        )
        self.start()

    def finish_boot(self) -> None:
        """Do what cloud-init does last, when the packages are there."""
        for command in self._told["runcmd"]:
            run(*command)

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
        disk = Host.look([self.options.server_directory])
        for mount in sorted(disk.mounts, reverse=True):
            run("umount", mount)
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
            "host_key": host_key_pair(self.options.ssh_private_key_file, self.server_id)[1],
            "private_key_file": self.options.ssh_private_key_file,
        }
        return SshShell(**{**given, **changes})

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

    def options(self, server_id: str) -> SshOptions:
        """What a compute helper would be configured with, but for the directory of each."""
        return SshOptions(
            ssh_private_key_file=self.directory / "key",
            server_directory=str(self.directory / f"{server_id}.disk"),
        )

    def machine(self, server_id: str) -> Machine:
        """A further machine, booted; sshd runs."""
        self.taken += 1
        options = self.options(server_id)
        machine = self.vacant(server_id, options, address_of(self.taken))
        machine.boot(boot_data(options, server_id))
        return machine

    def vacant(self, server_id: str, options: SshOptions, address: str) -> Machine:
        """A further machine at an address, not booted yet."""
        net = Tenant.make(self.bridge, f"{address}/28")
        machine = Machine(server_id, self.directory / server_id, options, net, address)
        self.members.append(machine)
        return machine
