"""Real Keystone and Neutron for tests, on free ports of 127.0.0.1, without DevStack.

The slow part (the tables) is done once and copied from then on. Another service is a member of
``SERVICES`` with its configuration; a larger set of packages is a requirements file of its own.
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import openstack
import requests
from openstack.connection import Connection

from tests.openstack import configuration, venv
from tests.openstack.configuration import PASSWORD
from tests.services import Process, free_port

REGION: Final = "RegionOne"
_PLACEHOLDER: Final = "http://127.0.0.1:1/v3"
"""Keystone's own endpoint in the prepared tables, until its port is known."""
_START_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class _Service:
    module: str
    configuration: Callable[[Path, int], str]
    catalog_type: str = ""


SERVICES: Final = {
    "keystone": _Service("keystone.wsgi.api", configuration.keystone),
    "neutron": _Service("neutron.wsgi.api", configuration.neutron, "network"),
}


class OpenStack:
    """Keystone and Neutron with an administrator, and a member of the project ``tenant``."""

    def __init__(self) -> None:
        requirements = venv.RECIPE / "requirements.txt"
        self._prepared = venv.cache("tables", requirements, *venv.RECIPE.rglob("*.py"))
        with venv.locked(self._prepared.parent):
            self._bin = venv.install(requirements)
            if not self._prepared.exists():
                self._prepare()
        self.home = Path(tempfile.mkdtemp(prefix="sw-openstack-"))
        shutil.copytree(self._prepared, self.home, dirs_exist_ok=True)
        self.ports = {name: free_port() for name in SERVICES}
        self.processes = {name: self._process(name) for name in SERVICES}

    @property
    def auth_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['keystone']}/v3"

    def url(self, service: str) -> str:
        return f"http://127.0.0.1:{self.ports[service]}"

    def _prepare(self) -> None:
        """Fill a directory with tables and keys; it takes its name when it is complete."""
        home = self._prepared.with_suffix(".part")
        shutil.rmtree(home, ignore_errors=True)
        (home / "neutron").mkdir(parents=True)
        shutil.copy(self._bin.parent / "etc/neutron/api-paste.ini", home)
        self._configure(home, 1)
        manage = (str(self._bin / "keystone-manage"), "--config-file", str(home / "keystone.conf"))
        root = ("--keystone-user", "root", "--keystone-group", "root")
        for command in (
            (*manage, "db_sync"),
            (*manage, "fernet_setup", *root),
            (*manage, "credential_setup", *root),
            (
                *(*manage, "bootstrap", "--bootstrap-password", PASSWORD),
                *("--bootstrap-region-id", REGION),
                *("--bootstrap-public-url", _PLACEHOLDER),
                *("--bootstrap-internal-url", _PLACEHOLDER),
            ),
            (
                *(str(self._bin / "python"), str(venv.INSIDE / "neutron_schema.py")),
                str(home / "neutron.conf"),
            ),
        ):
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=120, check=False, cwd=home
            )
            assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
        home.rename(self._prepared)

    @staticmethod
    def _configure(home: Path, keystone_port: int) -> None:
        for name, service in SERVICES.items():
            (home / f"{name}.conf").write_text(service.configuration(home, keystone_port))

    def _process(self, name: str) -> Process:
        command = (
            *(str(self._bin / "python"), str(venv.INSIDE / "serve.py")),
            *(SERVICES[name].module, str(self.ports[name])),
        )
        upper = name.upper()
        env = {
            "PYTHONPATH": str(venv.INSIDE),
            "PYTHONWARNINGS": "ignore",
            f"OS_{upper}_CONFIG_DIR": str(self.home),
            f"OS_{upper}_CONFIG_FILES": f"{name}.conf",
        }
        return Process(command, log=self.home / f"{name}.log", env=env)

    def start(self) -> Self:
        """Start both at once; the catalog and the tenant are written while Neutron starts."""
        self._configure(self.home, self.ports["keystone"])
        with closing(sqlite3.connect(self.home / "keystone.db")) as database, database:
            database.execute("UPDATE endpoint SET url = ?", (self.auth_url,))
        for process in self.processes.values():
            process.start()
        self.wait("keystone")
        self._fill_catalog()
        self.wait("neutron")
        return self

    def wait(self, service: str) -> None:
        """Wait until a service that was started answers."""
        process = self.processes[service]
        process.await_ready(lambda: _answers(self.url(service)), _START_SECONDS)

    def stop(self, service: str) -> None:
        self.processes[service].close()

    def start_again(self, service: str) -> None:
        self.processes[service].start(lambda: _answers(self.url(service)), _START_SECONDS)

    def _fill_catalog(self) -> None:
        with self.connect() as admin:
            identity = admin.identity
            for name, service in SERVICES.items():
                if service.catalog_type:
                    made = identity.create_service(type=service.catalog_type, name=name)
                    for interface in ("public", "internal"):
                        identity.create_endpoint(
                            service_id=made.id,
                            interface=interface,
                            region_id=REGION,
                            url=self.url(name),
                        )
            project = identity.create_project(name="tenant", domain_id="default")
            user = identity.create_user(name="tenant", password=PASSWORD, domain_id="default")
            member = next(role for role in identity.roles() if role.name == "member")
            identity.assign_project_role_to_user(project, user, member)

    def auth(self, who: str = "admin") -> dict[str, str]:
        """The options by which our helpers log in: ``admin``, or the member ``tenant``."""
        return {
            "auth_url": self.auth_url,
            "username": who,
            "password": PASSWORD,
            "project_name": who,
        }

    def connect(self, who: str = "admin", **options: Any) -> Connection:
        """The tests' own way in."""
        return openstack.connect(
            load_yaml_config=False,
            load_envvars=False,
            auth={**self.auth(who), "user_domain_id": "default", "project_domain_id": "default"},
            region_name=REGION,
            **options,
        )

    def close(self) -> None:
        for process in self.processes.values():
            process.close()
        shutil.rmtree(self.home, ignore_errors=True)


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).status_code < 500
    except requests.ConnectionError:
        return False
