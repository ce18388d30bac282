"""What Keystone and Neutron are told: SQLite, no message queue, no cache."""

from __future__ import annotations

from pathlib import Path

PASSWORD = "a-secret-of-the-tests"


def keystone(home: Path, _port: int) -> str:
    return f"""
[DEFAULT]
log_file = {home}/keystone-service.log
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


def neutron(home: Path, keystone_port: int) -> str:
    url = f"http://127.0.0.1:{keystone_port}/v3"
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
[keystone_authtoken]
www_authenticate_uri = {url}
auth_url = {url}
auth_type = password
username = admin
password = {PASSWORD}
project_name = admin
user_domain_id = default
project_domain_id = default
region_name = RegionOne
interface = internal
"""
