"""The interface of a compute helper (docs/explanation/architecture.md)."""

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
    """Creates and deletes share servers, and finds those that an earlier attempt created."""

    OptionsModel: ClassVar[type[Options]] = Options
    modes: ClassVar[frozenset[DriverMode]] = frozenset(
        {DriverMode.FLAT_MULTI_SVM, DriverMode.MANAGED_MULTI_SVM}
    )
    host_bound: ClassVar[bool] = False
    """Whether the servers run on one host, so that the backend must name it."""
    ports_per_server: ClassVar[int] = 1
    """Least number of addresses that a server of this kind needs."""
    needs_ports: ClassVar[bool] = False
    """Whether the servers are attached to Neutron ports, so that addresses alone are not enough."""

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
        """Create the share server, or find it, and return it once it serves.

        Raises :class:`~worker.errors.NotReady` while the server starts, and
        :class:`~worker.errors.Fatal` or :class:`~worker.errors.Retryable` with
        ``share_server_id`` set to the external id of a server that exists, so that the undo can
        find it.
        """

    @abstractmethod
    def delete_share_server(self, context: RequestContext, share_server: ShareServer) -> None:
        """Delete the share server, found by its recorded id or by its name; succeed when gone.

        Raises :class:`~worker.errors.NotReady` while the deletion is under way. It must be
        complete when the method returns, because the server's addresses are released next.
        """


class Watched(ABC):
    """Capability of a compute helper that detects servers that have stopped serving.

    Workers on the backend's host call it every few seconds.
    """

    @abstractmethod
    def outages(self, share_servers: Sequence[ShareServer]) -> Mapping[str, Outage]:
        """Return the outage of each active server that does not serve, by the server's id.

        Must be cheap for many servers while all of them serve. The engine repairs an outage with
        ``get_share_server``. Raises :class:`~worker.errors.Retryable` when the state of the
        servers is unknown.
        """


class Reachable(ABC):
    """Capability of a compute helper that can run commands on its servers."""

    @abstractmethod
    def shell(self, share_server: ShareServer) -> Shell:
        """Return a shell on the server; it connects only when a command is run."""
