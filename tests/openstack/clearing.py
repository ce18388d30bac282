"""Takes away what a failed test left in OpenStack, so that it makes no other test fail."""

from __future__ import annotations

from itertools import chain

from openstack.connection import Connection

from tests.openstack.baremetal import make_available
from tests.support.services import wait_until
from worker.helpers.network.neutron.helper import DEVICE_OWNER, TAG

MARK = "sharewright-"
"""How the names of the networks begin that helpers and tests make for one test."""


def clear(admin: Connection) -> None:
    """Delete what share servers have in every service that this cloud runs.

    Neutron comes last: machines and nodes hold ports.
    """
    if admin.has_service("compute"):
        clear_machines(admin)
    if admin.has_service("baremetal"):
        clear_nodes(admin)
    clear_networks(admin)


def clear_machines(admin: Connection) -> None:
    """Delete all machines, server groups and key pairs; only tests make them here."""
    nova = admin.compute
    for machine in nova.servers():
        nova.delete_server(machine)

    def gone() -> bool:
        # Nova lists what it has deleted for a moment more, as DELETED.
        return all(machine.status == "DELETED" for machine in nova.servers())

    wait_until(gone, "Nova has deleted all machines")
    for group in nova.server_groups():
        nova.delete_server_group(group)
    for pair in nova.keypairs():
        nova.delete_keypair(pair)


def clear_nodes(admin: Connection) -> None:
    """Make every node available again, and delete all allocations."""
    make_available(admin, list(admin.baremetal.nodes()))
    for allocation in admin.baremetal.allocations():
        admin.baremetal.delete_allocation(allocation)


def clear_networks(admin: Connection) -> None:
    """Delete the ports of all share servers, and all networks and routers that bear our mark."""
    neutron = admin.network
    for router in neutron.routers():
        if router.name.startswith(MARK):
            for port in neutron.ports(device_id=router.id):
                neutron.remove_interface_from_router(router, port_id=port.id)
            neutron.delete_router(router)
    # Nova writes itself down as the owner of a port; the tag stays.
    ours = chain(neutron.ports(device_owner=DEVICE_OWNER), neutron.ports(tags=TAG))
    for port_id in {port.id for port in ours}:
        neutron.delete_port(port_id)
    for network in neutron.networks():
        if network.name.startswith(MARK):
            neutron.delete_network(network)
