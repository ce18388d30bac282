"""Keystone and Neutron: SQLite, no message queue, no cache server."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final

from tests.openstack.recipe import INSIDE
from tests.openstack.service import PASSWORD, REGION, Command, Kit, Service, login

_PLACEHOLDER: Final = "http://127.0.0.1:1/v3"
"""Keystone's own endpoint in the prepared tables, until its port is known."""


def _keystone(home: Path, _ports: Mapping[str, int]) -> str:
    return f"""
[DEFAULT]
log_file = {home}/keystone-service.log
[cache]
enabled = true
# Of its one process. Ironic logs in ten times to attach one port.
backend = dogpile.cache.memory
[database]
connection = sqlite:///{home}/keystone.db
[token]
provider = fernet
[fernet_tokens]
key_repository = {home}/fernet-keys
[credential]
key_repository = {home}/credential-keys
[identity]
password_hash_rounds = 4
"""


def _keystone_tables(programs: Path, home: Path) -> Iterator[Command]:
    script = str(INSIDE / "keystone_schema.py")
    configuration = str(home / "keystone.conf")
    yield (str(programs / "python"), script, configuration, PASSWORD, REGION, _PLACEHOLDER)


def _move_keystone(home: Path, keystone_url: str) -> None:
    with closing(sqlite3.connect(home / "keystone.db")) as database, database:
        database.execute("UPDATE endpoint SET url = ?", (keystone_url,))


def _neutron(home: Path, ports: Mapping[str, int]) -> str:
    return f"""
[DEFAULT]
core_plugin = ml2
service_plugins = router
auth_strategy = keystone
api_paste_config = {home}/api-paste.ini
state_path = {home}/neutron
log_file = {home}/neutron-service.log
transport_url = fake://
host = testhost
dhcp_agent_notification = False
notify_nova_on_port_status_changes = False
notify_nova_on_port_data_changes = False
rpc_workers = 0
rpc_state_report_workers = 0
[database]
connection = sqlite:///{home}/neutron.db
[oslo_concurrency]
lock_path = {home}/neutron/lock
[oslo_messaging_notifications]
driver = noop
[quotas]
default_quota = -1
quota_network = -1
quota_subnet = -1
quota_port = -1
quota_router = -1
quota_security_group = -1
quota_security_group_rule = -1
[ml2]
type_drivers = flat,vlan,vxlan
project_network_types = vxlan
mechanism_drivers = binder
extension_drivers = port_security
[ml2_type_flat]
flat_networks = *
[ml2_type_vlan]
network_vlan_ranges = physnet1:100:1100
[ml2_type_vxlan]
vni_ranges = 2000:3000
[keystone_authtoken]{login(ports)}interface = internal
"""


def _neutron_tables(programs: Path, home: Path) -> Iterator[Command]:
    script = str(INSIDE / "neutron_schema.py")
    yield (str(programs / "python"), script, str(home / "neutron.conf"))


KEYSTONE: Final = Service(
    "keystone",
    _keystone,
    module="keystone.wsgi.api",
    tables=_keystone_tables,
    move=_move_keystone,
)
NEUTRON: Final = Service(
    "neutron",
    _neutron,
    module="neutron.wsgi.api",
    tables=_neutron_tables,
    copied=("neutron/api-paste.ini",),
    catalog_type="network",
)
NETWORK: Final = Kit("requirements.txt", (KEYSTONE, NEUTRON))
"""Enough for networks."""
