"""What the tests know of one OpenStack service: how it is told, prepared and started."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.openstack.recipe import INSIDE

Command = tuple[str, ...]

PASSWORD: Final = "a-secret-of-the-tests"
REGION: Final = "RegionOne"


def no_tables(_programs: Path, _home: Path) -> Iterable[Command]:
    """A service without a database of its own."""
    return ()


def no_urls(_home: Path, _keystone: str) -> None:
    """A service whose prepared tables hold no addresses of this run."""


@dataclass(frozen=True, slots=True)
class Service:
    """A service with a directory of its own, its ``home``.

    ``configuration`` gives the text of its file from its home and the ports of all services.
    ``tables`` are the commands that make its databases, from the virtual environment's programs
    and its home; they are run once, and the home is copied from then on. ``move`` corrects what
    the copy still says of where it was made. ``command`` starts it, from the programs, its home
    and its port; without one, ``module``'s WSGI application is served. It is started when those
    of ``after`` answer, and the catalog is written. ``copied`` are files of the environment's
    ``etc``; ``file`` and ``files`` are its configuration file and what its variable
    ``OS_..._CONFIG_FILES`` names, where they are called otherwise than the service.
    """

    name: str
    configuration: Callable[[Path, Mapping[str, int]], str]
    tables: Callable[[Path, Path], Iterable[Command]] = no_tables
    move: Callable[[Path, str], None] = no_urls
    module: str = ""
    command: Callable[[Path, Path, int], Command] | None = None
    file: str = ""
    files: str = ""
    copied: tuple[str, ...] = ()
    catalog_type: str = ""
    catalog_path: str = ""
    after: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        """What its configuration file is called."""
        return self.file or f"{self.name}.conf"

    def start_command(self, programs: Path, home: Path, port: int) -> Command:
        """The command that starts it."""
        if self.command is not None:
            return self.command(programs, home, port)
        return (str(programs / "python"), str(INSIDE / "serve.py"), self.module, str(port))


@dataclass(frozen=True, slots=True)
class Kit:
    """A set of services that are started together, in this order, from one environment."""

    requirements: str
    services: tuple[Service, ...]


def login(ports: Mapping[str, int]) -> str:
    """How a service logs in at Keystone; the lines of an option group."""
    url = keystone_url(ports)
    return f"""
www_authenticate_uri = {url}
auth_url = {url}
auth_type = password
username = admin
password = {PASSWORD}
project_name = admin
user_domain_id = default
project_domain_id = default
region_name = {REGION}
"""


def keystone_url(ports: Mapping[str, int]) -> str:
    """Where Keystone answers."""
    return f"http://127.0.0.1:{ports['keystone']}/v3"
