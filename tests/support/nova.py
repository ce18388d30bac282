"""What tests with Nova have in common: its cloud, its machines, and an sshd in place of one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from openstack.compute.v2.server import Server
from openstack.connection import Connection

from tests.openstack.cloud import OpenStack
from tests.support.services import Process, require
from worker.helpers.compute.nova.helper import NovaComputeHelper, NovaOptions
from worker.model import DriverMode
from worker.plugin import BackendContext

SETTING: Final = BackendContext("vms", DriverMode.MANAGED_MULTI_SVM, Path("/nonexistent"))


@dataclass
class Site:
    """OpenStack with Nova, what the backend's machines are made of, and a tenant's network."""

    cloud: OpenStack
    admin: Connection
    key_file: Path
    neutron_net_id: str
    neutron_subnet_id: str

    def options(self, **options: Any) -> dict[str, Any]:
        return {
            "image": "service-image",
            "flavor": "service",
            "poll_interval": 0.5,
            "ssh_private_key_file": str(self.key_file),
            "wait_for_ssh": False,
            **self.cloud.auth(),
            **options,
        }

    def helper(self, **options: Any) -> NovaComputeHelper:
        return NovaComputeHelper(SETTING, NovaOptions(**self.options(**options)))

    def machines(self) -> list[Server]:
        """Nova lists what it has deleted for a moment more, as DELETED."""
        found = self.admin.compute.servers(name="^sw-")
        return [machine for machine in found if machine.status != "DELETED"]

    def state(self) -> Any:
        return sorted((machine.id, machine.name) for machine in self.machines())

    def backend(self, name: str, **options: Any) -> str:
        """A backend's part of the configuration."""

        def table(given: dict[str, Any]) -> str:
            return "".join(f"{key} = {json.dumps(value)}\n" for key, value in given.items())

        return (
            f'[backends.{name}]\nmode = "managed_multi_svm"\nshare_driver = "fake"\n'
            f'compute_helper = "nova"\nnetwork_helpers = ["neutron"]\n'
            f"[backends.{name}.driver]\ncheck_servers = false\n"
            f"[backends.{name}.compute]\n{table(self.options(**options))}"
            f"[backends.{name}.network.neutron]\n{table(self.cloud.auth())}"
        )


def a_network(admin: Connection, name: str, cidr: str) -> tuple[str, str]:
    """A network of loopback addresses, so that an sshd here can stand in for a machine."""
    network = admin.network.create_network(name=name)
    subnet = admin.network.create_subnet(
        network_id=network.id, cidr=cidr, ip_version=4, enable_dhcp=False, gateway_ip=None
    )
    return network.id, subnet.id


class StandIn:
    """An sshd that is configured by a machine's user data, as cloud-init would do it."""

    def __init__(self, directory: Path, user_data: str, address: str, port: int) -> None:
        written = json.loads(user_data.removeprefix("#cloud-config"))
        (directory / "host_key").touch(mode=0o600)
        (directory / "host_key").write_text(written["ssh_keys"]["ed25519_private"])
        (directory / "keys").write_text("\n".join(written["users"][0]["ssh_authorized_keys"]))
        configuration = directory / "sshd_config"
        configuration.write_text(
            f"ListenAddress {address}:{port}\nHostKey {directory}/host_key\nPidFile none\n"
            f"AuthorizedKeysFile {directory}/keys\nStrictModes no\nUsePAM no\n"
            f"PasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        )
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        command = (require("sshd"), "-D", "-e", "-f", str(configuration))
        self.process = Process(command, log=directory / "sshd.log").start("Server listening")
