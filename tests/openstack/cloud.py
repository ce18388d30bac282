"""Real OpenStack services for tests, on free ports of 127.0.0.1, without DevStack.

The slow part (the tables) is done once and copied from then on. A test asks for a set of services
(a :class:`~tests.openstack.service.Kit`), so that those which need networks only pay for no more.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Self

import openstack
import requests
from openstack.connection import Connection

from tests.openstack.configuration import NETWORK
from tests.openstack.recipe import INSIDE, RECIPE
from tests.openstack.service import PASSWORD, REGION, Kit, Service, keystone_url
from tests.support import venv
from tests.support.pace import limit
from tests.support.services import Process, free_port


class OpenStack:
    """The services of a kit with an administrator, and a member of the project ``tenant``."""

    def __init__(self, kit: Kit = NETWORK) -> None:
        self._services = {service.name: service for service in kit.services}
        # Kits agree in the versions of what they share, so they share the tables too.
        recipe = (*RECIPE.rglob("*.py"), *RECIPE.glob("*.in"))
        prepared = {name: venv.cache(name, *recipe) for name in self._services}
        with venv.locked(kit.requirements):
            self._programs = venv.install(RECIPE / kit.requirements)
        for name, directory in prepared.items():
            with venv.locked(name):
                if not directory.exists():
                    self._prepare(self._services[name], directory)
        self.home = Path(tempfile.mkdtemp(prefix="sw-openstack-"))
        for name, directory in prepared.items():
            shutil.copytree(directory, self.home / name)
        self.ports = {name: free_port() for name in self._services}
        self.processes = {name: self._process(name) for name in self._services}

    @property
    def auth_url(self) -> str:
        return keystone_url(self.ports)

    def url(self, service: str) -> str:
        return f"http://127.0.0.1:{self.ports[service]}"

    def _prepare(self, service: Service, directory: Path) -> None:
        """Fill a directory with tables and keys; it takes its name when it is complete."""
        home = directory.with_suffix(".part")
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        for file in service.copied:
            shutil.copy(self._programs.parent / "etc" / file, home)
        self._configure(service, home, dict.fromkeys(self._services, 1))
        for command in service.tables(self._programs, home):
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=limit(), check=False, cwd=home
            )
            said = f"{done.stdout[-2000:]}{done.stderr[-4000:]}"
            assert done.returncode == 0, f"{command}: {said}"
        home.rename(directory)

    @staticmethod
    def _configure(service: Service, home: Path, ports: dict[str, int]) -> None:
        (home / service.file_name).write_text(service.configuration(home, ports))

    def _process(self, name: str) -> Process:
        service, home = self._services[name], self.home / name
        env = {
            "PYTHONPATH": str(INSIDE),
            "PYTHONWARNINGS": "ignore",
            f"OS_{name.upper()}_CONFIG_DIR": str(home),
            f"OS_{name.upper()}_CONFIG_FILES": service.files or service.file_name,
        }
        command = service.start_command(self._programs, home, self.ports[name])
        return Process(command, log=self.home / f"{name}.log", env=env)

    def start(self) -> Self:
        """Start what can start at once; the catalog and the tenant are written meanwhile."""
        for service in self._services.values():
            self._configure(service, self.home / service.name, self.ports)
            service.move(self.home / service.name, self.auth_url)
            if not service.after:
                self.processes[service.name].start()
        self.wait("keystone")
        self._fill_catalog()
        for service in self._services.values():
            for other in service.after:
                self.wait(other)
            if service.after:
                self.processes[service.name].start()
        for name in self._services:
            self.wait(name)
        return self

    def wait(self, service: str) -> None:
        """Wait until a service that was started answers."""
        process = self.processes[service]
        process.await_ready(lambda: _answers(self.url(service)))

    def stop(self, service: str) -> None:
        self.processes[service].close()

    def start_again(self, service: str) -> None:
        self.processes[service].start(lambda: _answers(self.url(service)))

    def _fill_catalog(self) -> None:
        with self.connect() as admin:
            identity = admin.identity
            for name, service in self._services.items():
                if service.catalog_type:
                    made = identity.create_service(type=service.catalog_type, name=name)
                    for interface in ("public", "internal"):
                        identity.create_endpoint(
                            service_id=made.id,
                            interface=interface,
                            region_id=REGION,
                            url=self.url(name) + service.catalog_path,
                        )
            project = identity.create_project(name="tenant", domain_id="default")
            user = identity.create_user(name="tenant", password=PASSWORD, domain_id="default")
            roles = {role.name: role for role in identity.roles()}
            identity.assign_project_role_to_user(project, user, roles["member"])
            # The services log in as the administrator, and act for one another.
            own = identity.find_project("admin", ignore_missing=False)
            administrator = identity.find_user("admin", ignore_missing=False)
            identity.assign_project_role_to_user(own, administrator, roles["service"])

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
