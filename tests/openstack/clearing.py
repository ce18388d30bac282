"""Takes away what a failed test left in Neutron, so that it makes no other test fail."""

from __future__ import annotations

from openstack.connection import Connection

from worker.helpers.network.neutron.helper import DEVICE_OWNER

_OURS = "sharewright-"


def clear_networks(admin: Connection) -> None:
    """Delete the ports of all share servers, and all networks and routers that a helper made."""
    neutron = admin.network
    for router in neutron.routers():
        if router.name.startswith(_OURS):
            for port in neutron.ports(device_id=router.id):
                neutron.remove_interface_from_router(router, port_id=port.id)
            neutron.delete_router(router)
    for port in neutron.ports(device_owner=DEVICE_OWNER):
        neutron.delete_port(port)
    for network in neutron.networks():
        if network.name.startswith(_OURS):
            neutron.delete_network(network)
