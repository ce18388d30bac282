"""The share manager: the verbs of one backend, spoken to its driver and helpers.

It picks the helper for a share network, counts ports, and refuses what a part lacks the power
for. It knows no rows, no operations and no messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from worker.backend import Backend
from worker.drivers.base import Ensure, Resize
from worker.errors import ErrorCode, Fatal
from worker.helpers.compute.base import Watched
from worker.helpers.network.base import AddressPools, Renewing
from worker.model import (
    AccessRule,
    ExportLocation,
    NetworkInfo,
    Outage,
    RequestContext,
    SecurityService,
    Share,
    ShareNetwork,
    ShareServer,
    ShareServerDetails,
    Snapshot,
    StoragePool,
)


@dataclass(frozen=True, slots=True)
class Report:
    """What a backend says of itself for placement."""

    mode: str
    protocols: tuple[str, ...]
    network_kinds: tuple[str, ...]
    can_extend: bool
    is_watched: bool
    pools: tuple[StoragePool, ...]
    address_pools: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ShareManager:
    """The verbs of one backend."""

    backend: Backend

    def allocate_network(
        self, context: RequestContext, server: ShareServer, network: ShareNetwork
    ) -> NetworkInfo:
        """Allocate the addresses of a share server."""
        helper = self.backend.network_helper(network.kind)
        if helper is None:
            raise Fatal(
                f"Backend {self.backend.name} serves no share networks of kind {network.kind}; "
                f"its configuration changed since it was chosen.",
                object=f"share network {network.id}",
                code=ErrorCode.NETWORK_FAILED,
            )
        return helper.allocate_network(context, server, network, self.backend.ports_per_server)

    def deallocate_network(self, context: RequestContext, server: ShareServer) -> None:
        """Release what a share server holds, with whichever helper it was allocated by."""
        for helper in self.backend.networks:
            helper.deallocate_network(context, server)

    def renew_network(self, context: RequestContext, server: ShareServer) -> None:
        """Renew what runs out of what a share server holds."""
        for helper in self.backend.networks:
            if isinstance(helper, Renewing):
                helper.renew_network(context, server)

    def get_share_server(
        self,
        context: RequestContext,
        server: ShareServer,
        network: ShareNetwork,
        info: NetworkInfo,
        security_services: Sequence[SecurityService],
    ) -> ShareServerDetails:
        """Make a share server, or find what an earlier attempt made."""
        assert self.backend.compute is not None, "a mode without servers has no such step"
        return self.backend.compute.get_share_server(
            context, server, network, info, security_services
        )

    def delete_share_server(self, context: RequestContext, server: ShareServer) -> None:
        """Delete a share server outside."""
        assert self.backend.compute is not None, "a mode without servers has no such step"
        self.backend.compute.delete_share_server(context, server)

    @property
    def is_watched(self) -> bool:
        """Whether a worker of the backend's host can tell that its file servers have stopped."""
        backend = self.backend
        watched = backend.compute if backend.mode.has_share_servers else backend.driver
        return backend.settings.host is not None and isinstance(watched, Watched | Ensure)

    def outages(self, servers: Sequence[ShareServer]) -> Mapping[str, Outage]:
        """Tell which active servers do not serve, and what they lack."""
        compute = self.backend.compute
        assert compute is not None, "a mode without servers has none to watch"
        return compute.outages(servers) if isinstance(compute, Watched) else {}

    def serves(self) -> bool:
        """``single_svm``: whether the predefined server serves, as far as can be told."""
        driver = self.backend.driver
        return not isinstance(driver, Ensure) or driver.serves()

    @property
    def can_ensure(self) -> bool:
        """Whether the driver brings exports back; else its storage system keeps them."""
        return isinstance(self.backend.driver, Ensure)

    def ensure_share(
        self, context: RequestContext, share: Share, server: ShareServer | None
    ) -> tuple[ExportLocation, ...]:
        """Serve a share again that was created before."""
        driver = self.backend.driver
        assert isinstance(driver, Ensure), "can_ensure was asked first"
        return driver.ensure_share(context, share, server)

    def create_share(
        self,
        context: RequestContext,
        share: Share,
        snapshot: Snapshot | None,
        server: ShareServer | None,
    ) -> tuple[ExportLocation, ...]:
        """Make a share, empty or with a snapshot's content."""
        driver = self.backend.driver
        if snapshot is None:
            return driver.create_share(context, share, server)
        return driver.create_share_from_snapshot(context, share, snapshot, server)

    def delete_share(
        self, context: RequestContext, share: Share, server: ShareServer | None
    ) -> None:
        """Remove a share and its export."""
        self.backend.driver.delete_share(context, share, server)

    def create_snapshot(
        self, context: RequestContext, snapshot: Snapshot, share: Share, server: ShareServer | None
    ) -> None:
        """Keep a share's present content."""
        self.backend.driver.create_snapshot(context, snapshot, share, server)

    def delete_snapshot(
        self, context: RequestContext, snapshot: Snapshot, share: Share, server: ShareServer | None
    ) -> None:
        """Remove a snapshot."""
        self.backend.driver.delete_snapshot(context, snapshot, share, server)

    def update_access(
        self,
        context: RequestContext,
        share: Share,
        server: ShareServer | None,
        rules: Sequence[AccessRule],
        generation: int,
    ) -> None:
        """Enforce exactly these rules."""
        self.backend.driver.update_access(context, share, server, rules, generation)

    def extend_share(
        self, context: RequestContext, share: Share, size: int, server: ShareServer | None
    ) -> None:
        """Raise a share's limit to ``size`` GiB."""
        self._resize(share).extend_share(context, share, size, server)

    def share_size(self, context: RequestContext, share: Share, server: ShareServer | None) -> int:
        """Read a share's real limit back, in GiB."""
        return self._resize(share).share_size(context, share, server)

    def _resize(self, share: Share) -> Resize:
        driver = self.backend.driver
        if not isinstance(driver, Resize):
            raise Fatal(
                f"The driver of backend {self.backend.name} cannot resize shares.",
                object=f"share {share.id}",
                code=ErrorCode.NOT_SUPPORTED,
            )
        return driver

    def report(self) -> Report:
        """Ask the driver for its pools, and say what the backend takes."""
        backend = self.backend
        return Report(
            mode=str(backend.mode),
            protocols=tuple(sorted(backend.driver.protocols)),
            network_kinds=tuple(sorted(backend.network_kinds)),
            can_extend=isinstance(backend.driver, Resize),
            is_watched=self.is_watched,
            pools=backend.driver.storage_pools(),
            address_pools={
                domain: size
                for helper in backend.networks
                if isinstance(helper, AddressPools)
                for domain, size in helper.address_pools().items()
            },
        )
