"""Placement, Glance and Nova with its fake virtualization driver, beside Keystone and Neutron."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final

from tests.openstack.configuration import KEYSTONE, NEUTRON
from tests.openstack.recipe import INSIDE
from tests.openstack.service import Command, Kit, Service, login


def _placement(home: Path, ports: Mapping[str, int]) -> str:
    return f"""
[DEFAULT]
log_file = {home}/placement-service.log
[api]
auth_strategy = keystone
[placement_database]
connection = sqlite:///{home}/placement.db
[keystone_authtoken]{login(ports)}interface = internal
"""


def _placement_tables(programs: Path, home: Path) -> Iterator[Command]:
    manage = str(programs / "placement-manage")
    yield (manage, "--config-file", str(home / "placement.conf"), "db", "sync")


def _glance(home: Path, ports: Mapping[str, int]) -> str:
    return f"""
[DEFAULT]
log_file = {home}/glance-service.log
enabled_backends = file:file
transport_url = fake://
[database]
connection = sqlite:///{home}/glance.db
[glance_store]
default_backend = file
[file]
filesystem_store_datadir = {home}/images
[os_glance_tasks_store]
filesystem_store_datadir = {home}/tasks
[os_glance_staging_store]
filesystem_store_datadir = {home}/staging
[paste_deploy]
flavor = keystone
config_file = {home}/glance-api-paste.ini
[oslo_concurrency]
lock_path = {home}/lock
[oslo_messaging_notifications]
driver = noop
[keystone_authtoken]{login(ports)}interface = internal
"""


def _glance_tables(programs: Path, home: Path) -> Iterator[Command]:
    manage = str(programs / "glance-manage")
    yield (manage, "--config-file", str(home / "glance-api.conf"), "db_sync")


def _nova(home: Path, ports: Mapping[str, int]) -> str:
    others = "".join(
        f"[{other}]{login(ports)}valid_interfaces = internal\n"
        for other in ("neutron", "placement", "glance")
    )
    return f"""
[DEFAULT]
host = testhost
my_ip = 127.0.0.1
state_path = {home}
log_file = {home}/nova-service.log
transport_url = fake://
compute_driver = fake.FakeDriverWithoutFakeNodes
vif_plugging_is_fatal = False
vif_plugging_timeout = 0
flat_injected = False
[api]
auth_strategy = keystone
[api_database]
connection = sqlite:///{home}/nova_api.db
[database]
connection = sqlite:///{home}/nova.db
[oslo_concurrency]
lock_path = {home}/lock
[oslo_messaging_notifications]
driver = noop
[conductor]
workers = 1
[scheduler]
workers = 1
[quota]
instances = -1
cores = -1
ram = -1
[vnc]
enabled = False
[cinder]
catalog_info = volumev3::publicURL
[keystone_authtoken]{login(ports)}interface = internal
[service_user]{login(ports)}send_service_user_token = True
{others}"""


def _nova_tables(programs: Path, home: Path) -> Iterator[Command]:
    yield (str(programs / "python"), str(INSIDE / "nova_schema.py"), str(home))


def _move_nova(home: Path, _keystone_url: str) -> None:
    """The table of cells names their databases."""
    with closing(sqlite3.connect(home / "nova_api.db")) as database, database:
        for cell, file in (("cell0", "nova_cell0.db"), ("cell1", "nova.db")):
            database.execute(
                "UPDATE cell_mappings SET database_connection = ? WHERE name = ?",
                (f"sqlite:///{home / file}", cell),
            )


def _start_nova(programs: Path, _home: Path, port: int) -> Command:
    return (str(programs / "python"), str(INSIDE / "nova_in_one.py"), str(port))


PLACEMENT: Final = Service(
    "placement",
    _placement,
    module="placement.wsgi.api",
    tables=_placement_tables,
    catalog_type="placement",
)
GLANCE: Final = Service(
    "glance",
    _glance,
    module="glance.wsgi.api",
    tables=_glance_tables,
    file="glance-api.conf",
    copied=("glance/glance-api-paste.ini",),
    catalog_type="image",
)
NOVA: Final = Service(
    "nova",
    _nova,
    command=_start_nova,
    tables=_nova_tables,
    move=_move_nova,
    files="api-paste.ini;nova.conf",
    copied=("nova/api-paste.ini",),
    catalog_type="compute",
    catalog_path="/v2.1",
    after=("placement",),
)
COMPUTE: Final = Kit("requirements-nova.txt", (KEYSTONE, NEUTRON, PLACEMENT, GLANCE, NOVA))
"""Networks, images and virtual machines."""
