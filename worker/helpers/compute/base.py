"""The compute helper's interface (docs/explanation/architecture.md)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from worker.model import (
    DriverMode,
    NetworkInfo,
    Outage,
    RequestContext,
    SecurityService,
    ShareNetwork,
    ShareServer,
    ShareServerDetails,
)
from worker.plugin import BackendContext, Options
from worker.systems.shell.base import Shell


class ComputeHelper(ABC):
    """Supplies share servers: makes one, or finds what an earlier attempt made."""

    OptionsModel: ClassVar[type[Options]] = Options
    modes: ClassVar[frozenset[DriverMode]] = frozenset(
        {DriverMode.FLAT_MULTI_SVM, DriverMode.MANAGED_MULTI_SVM}
    )
    host_bound: ClassVar[bool] = False
    """Whether its servers live on the host that its backend names."""
    ports_per_server: ClassVar[int] = 1
    """How many addresses a server of this kind needs at least."""
    needs_ports: ClassVar[bool] = False
    """Whether its servers are attached to Neutron's ports, not only given addresses."""

    def __init__(self, backend: BackendContext, options: Options) -> None:
        self.backend = backend
        self.options = options

    @abstractmethod
    def get_share_server(
        self,
        context: RequestContext,
        share_server: ShareServer,
        share_network: ShareNetwork,
        network_info: NetworkInfo,
        security_services: Sequence[SecurityService],
    ) -> ShareServerDetails:
        """Make the share server or find it, and return it once it serves.

        Raises :class:`~worker.errors.NotReady` while it comes up, and
        :class:`~worker.errors.Fatal` or :class:`~worker.errors.Retryable` with
        ``share_server_id`` set to what exists outside, so that the undo can find it.
        """

    @abstractmethod
    def delete_share_server(self, context: RequestContext, share_server: ShareServer) -> None:
        """Delete it by its recorded id or by the name made of its row's id; gone is fine.

        Raises :class:`~worker.errors.NotReady` while it goes: its addresses are released next.
        """


class Watched(ABC):
    """Capability of a compute helper that tells which of its servers do not serve any more.

    It is asked every few seconds by workers of its backend's host.
    """

    @abstractmethod
    def outages(self, share_servers: Sequence[ShareServer]) -> Mapping[str, Outage]:
        """Return what active servers lack, by their ids; those that serve are left out.

        Cheap while all is well, however many they are. What is found is mended by
        ``get_share_server``. Raises :class:`~worker.errors.Retryable` when it cannot be told.
        """


class Reachable(ABC):
    """Capability of a compute helper whose servers take commands."""

    @abstractmethod
    def shell(self, share_server: ShareServer) -> Shell:
        """Return a shell on the server; reaching it is tried when a command is run."""
