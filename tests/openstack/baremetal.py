"""Ironic with fake hardware, beside Keystone and Neutron, and the nodes that it has."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from openstack.baremetal.v1.node import Node
from openstack.connection import Connection

from tests.openstack.configuration import KEYSTONE, NEUTRON
from tests.openstack.recipe import INSIDE
from tests.openstack.service import Command, Kit, Service, login
from tests.support.services import wait_until

KINDS: Final = {
    "bios": "no-bios",
    "console": "no-console",
    "firmware": "no-firmware",
    "inspect": "no-inspect",
    "raid": "no-raid",
    "rescue": "no-rescue",
    "storage": "noop",
    "vendor": "no-vendor",
}
"""What fake hardware can do without."""
_FAILED: Final = frozenset({"deploy failed", "error"})
"""States in which a node stays until somebody undeploys it."""


def _ironic(home: Path, ports: Mapping[str, int]) -> str:
    without = "\n".join(f"enabled_{kind}_interfaces = fake,{none}" for kind, none in KINDS.items())
    others = "".join(
        f"[{other}]{login(ports)}valid_interfaces = internal\n"
        for other in ("service_catalog", "neutron")
    )
    port = ports["ironic"]
    return f"""
[DEFAULT]
auth_strategy = keystone
rpc_transport = none
transport_url = fake://
host = testhost
my_ip = 127.0.0.1
state_path = {home}
tempdir = {home}
log_file = {home}/ironic-service.log
enabled_hardware_types = fake-hardware
enabled_boot_interfaces = fake
enabled_deploy_interfaces = fake
enabled_management_interfaces = fake
enabled_network_interfaces = noop,neutron
enabled_power_interfaces = fake
default_deploy_interface = fake
default_network_interface = neutron
{without}
[api]
host_ip = 127.0.0.1
port = {port}
public_endpoint = http://127.0.0.1:{port}
api_workers = 1
[database]
connection = sqlite:///{home}/ironic.db
[conductor]
automated_clean = False
[dhcp]
dhcp_provider = none
[oslo_concurrency]
lock_path = {home}/lock
[keystone_authtoken]{login(ports)}interface = internal
{others}"""


def _ironic_tables(programs: Path, home: Path) -> Iterator[Command]:
    yield (str(programs / "ironic-dbsync"), *_file(home), "create_schema")


def _start_ironic(programs: Path, home: Path, _port: int) -> Command:
    """API and conductor in one process, so that they need no messages."""
    return (str(programs / "python"), str(INSIDE / "ironic_in_one.py"), *_file(home))


def _file(home: Path) -> Command:
    return ("--config-file", str(home / "ironic.conf"))


IRONIC: Final = Service(
    "ironic",
    _ironic,
    command=_start_ironic,
    tables=_ironic_tables,
    catalog_type="baremetal",
)
BARE_METAL: Final = Kit("requirements-ironic.txt", (KEYSTONE, NEUTRON, IRONIC))
"""Networks and bare metal."""


def enrol(admin: Connection, resource_class: str, count: int) -> list[Node]:
    """Make nodes that are available, each with one network card."""
    ironic = admin.baremetal
    own = admin.network.find_network("ironic") or admin.network.create_network(name="ironic")
    networks = {"cleaning_network": own.id, "provisioning_network": own.id}
    nodes = [
        ironic.create_node(
            name=f"{resource_class}-{number}",
            driver="fake-hardware",
            resource_class=resource_class,
            driver_info=networks,
        )
        for number in range(count)
    ]
    for node in nodes:
        ironic.create_port(
            node_id=node.id,
            address="52:54:00:" + os.urandom(3).hex(":"),
            local_link_connection={"switch_id": "0a:1b:2c:3d:4e:5f", "port_id": node.name},
        )
        # A node whose power state is unknown is given to nobody.
        ironic.set_node_power_state(node, "power off")
    settle(admin, nodes)
    for verb in ("manage", "provide"):
        for node in nodes:
            ironic.set_node_provision_state(node, verb)
        settle(admin, nodes)
    return nodes


def settle(admin: Connection, nodes: list[Node]) -> None:
    """Wait until Ironic works on none of these nodes; one that failed keeps its target."""

    def works_on(node: Node) -> bool:
        failed = node.provision_state in _FAILED
        return bool(node.reservation or (node.target_provision_state and not failed))

    def at_rest() -> bool:
        return not any(works_on(admin.baremetal.get_node(node.id)) for node in nodes)

    wait_until(at_rest, "Ironic has ended what it does to its nodes")


def make_available(admin: Connection, nodes: list[Node]) -> None:
    """Take nodes back from whoever they were given to, whatever state they are in."""
    ironic = admin.baremetal
    settle(admin, nodes)
    seen = [ironic.get_node(node.id) for node in nodes]
    for node in seen:
        if node.is_maintenance:
            ironic.unset_node_maintenance(node)
        if node.provision_state != "available":
            ironic.set_node_provision_state(node, "deleted")
    settle(admin, nodes)
    for node in seen:
        for vif in ironic.list_node_vifs(node):
            ironic.detach_vif_from_node(node, vif)
        if ironic.get_node(node.id).instance_info:
            ironic.patch_node(node, [{"op": "replace", "path": "/instance_info", "value": {}}])


def remove(admin: Connection, nodes: list[Node]) -> None:
    """Take nodes away, whatever state they are in."""
    for node in nodes:
        admin.baremetal.set_node_maintenance(node)
        admin.baremetal.delete_node(node)
