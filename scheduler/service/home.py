"""The home directory of an embedded service: its files and its configuration.

``sharewright up`` writes into it and the command reads from it; nothing else needs to be known of
a running service than the directory's path.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from worker.config import (
    BrokerSettings,
    Config,
    DatabaseSettings,
    SecretsSettings,
    from_document,
    load,
    usable_path,
)
from worker.errors import ConfigurationError

DEFAULT_HOME: Final = Path("~/.sharewright")
LOG_BYTES: Final = 64 * 2**20
"""A log that is longer is set aside."""
_LONGEST_SOCKET_PATH: Final = 107  # sun_path of unix(7), without its final zero


@dataclass(frozen=True, slots=True)
class Home:
    """Where an embedded service keeps everything."""

    path: Path

    @classmethod
    def at(cls, path: Path | str) -> Home:
        """Return the home at a path that may be relative or begin with ``~``."""
        return cls(Path(path).expanduser().absolute())

    @property
    def config_path(self) -> Path:
        """The operator's own configuration, if there is one."""
        return self.path / "sharewright.toml"

    @property
    def service_path(self) -> Path:
        """The description of the running service; absent while it is stopped."""
        return self.path / "service.json"

    @property
    def socket(self) -> Path:
        """Where the private Redis listens."""
        return self.path / "redis.sock"

    @property
    def logs(self) -> Path:
        """One file a role."""
        return self.path / "logs"

    def log(self, role: str) -> Path:
        """Return a role's log."""
        return self.logs / f"{role}.log"

    def shorten_logs(self) -> None:
        """Set logs that have grown too long aside, in place of what was set aside before.

        Their writers append, and so go on in the emptied file; what they write between copy and
        emptying is lost.
        """
        for log in self.logs.glob("*.log"):
            with contextlib.suppress(FileNotFoundError):  # somebody tidies up beside us
                if log.stat().st_size > LOG_BYTES:
                    with contextlib.suppress(OSError):  # on a full disk, room counts for more
                        shutil.copyfile(log, log.with_suffix(".log.1"))
                    os.truncate(log, 0)

    @property
    def database_url(self) -> str:
        """The service's own database."""
        return f"sqlite:///{self.path / 'sharewright.db'}"

    def broker_url(self, number: int = 0) -> str:
        """The private Redis, as Celery names it."""
        return f"redis+socket://{self.socket}?virtual_host={number}"

    def check(self) -> None:
        """Refuse a path that file servers, their configuration or a socket could not have.

        Raises :class:`~worker.errors.ConfigurationError`.
        """
        try:
            usable_path(self.path)
        except ValueError as error:
            raise ConfigurationError(f"The home {error}.") from None
        if len(os.fsencode(self.socket)) > _LONGEST_SOCKET_PATH:
            raise ConfigurationError(
                f"The path {self.socket} is too long for a socket (at most "
                f"{_LONGEST_SOCKET_PATH} bytes); choose a shorter --home."
            )

    def config(self, otherwise: Mapping[str, Any] | None = None) -> Config:
        """Return the operator's configuration, or ``otherwise``, with this home's own services.

        Raises :class:`~worker.errors.ConfigurationError`.
        """
        self.check()
        if self.config_path.exists():
            config = load(self.config_path)
        else:
            config = from_document(deepcopy(dict(otherwise or {})), "(generated)")
        given = config.broker.model_dump(include=config.broker.model_fields_set)
        own = {"url": self.broker_url(0), "result_backend": self.broker_url(1)}
        update: dict[str, Any] = {
            "database": DatabaseSettings(url=self.database_url),
            "broker": BrokerSettings(**{**given, **own}),
        }
        if "state_dir" not in config.model_fields_set:
            update["state_dir"] = self.path / "state"
        if "directory" not in config.secrets.model_fields_set:
            update["secrets"] = SecretsSettings(directory=self.path / "secrets")
        return config.model_copy(update=update)

    def service(self) -> dict[str, Any] | None:
        """Return the content of ``service.json``; None when there is no such file."""
        try:
            document: dict[str, Any] = json.loads(self.service_path.read_text())
        except FileNotFoundError:
            return None
        return document

    def write_service(self, document: dict[str, Any]) -> None:
        """Replace ``service.json``: readers see the old one or the new one."""
        fresh = self.service_path.with_suffix(".new")
        fresh.write_text(json.dumps(document, indent=2) + "\n")
        fresh.replace(self.service_path)
