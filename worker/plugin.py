"""What every driver and helper has in common: its options, and where it finds itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from worker.model import DriverMode, ShareServer
from worker.systems.shell import Shell

ShellFor = Callable[[ShareServer | None], Shell]
"""Gives the shell of a share server; of the predefined server when there is none."""


class Options(BaseModel):
    """Base of each plug-in's own validated options; an unknown option stops the worker at start.

    Every field carries a ``description``: the operator's guide is generated from them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a plug-in finds itself.

    ``state_dir`` is a directory of the backend's own on this host for what must outlive the
    worker (records of daemons, images); it is made by whoever first writes to it. It is the same
    after a restart, and other backends do not use it.
    """

    backend: str
    mode: DriverMode
    state_dir: Path
    share_network_addresses: bool = False
    """Whether a flat backend uses the addresses that a share network brings."""
    servers_elsewhere: bool = False
    """Whether share servers are machines of their own, so that what they need lies on them."""


class Checked(ABC):
    """The power of a driver or helper that can ask the outside whether its options fit it."""

    @abstractmethod
    def check(self) -> None:
        """Look for what the options name, when a worker starts; nothing is changed.

        Raises :class:`~worker.errors.Fatal` when it is not there or not unambiguous: the worker
        then does not start; :class:`~worker.errors.Retryable` when the outside cannot be asked.
        """
