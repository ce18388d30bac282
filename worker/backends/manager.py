"""The share manager: calls a backend's driver and helpers for each step.

It chooses the network helper for a share network, computes the number of ports, and refuses
requests for which a part lacks the capability. It knows no rows, operations or messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from worker.backends.assembly import Backend
from worker.drivers.base import AuditOnServers, Ensure, Resize
from worker.errors import ErrorCode, Fatal, ObjectKind
from worker.helpers.compute.base import Watched
from worker.helpers.network.base import AddressPools, Renewing
from worker.model import (
    AccessRule,
    ExportLocation,
    NetworkInfo,
    Outage,
    OwnedResource,
    OwnerKind,
    RequestContext,
    SecurityService,
    Share,
    ShareNetwork,
    ShareServer,
    ShareServerDetails,
    Snapshot,
    StoragePool,
)
from worker.plugin import Audit


@dataclass(frozen=True, slots=True)
class Report:
    """Report of a backend's pools and accepted share networks, for placement."""

    mode: str
    protocols: tuple[str, ...]
    network_kinds: tuple[str, ...]
    can_extend: bool
    is_watched: bool
    pools: tuple[StoragePool, ...]
    address_pools: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class AuditTarget:
    """A part of a backend that can be audited.

    ``role`` is ``driver``, ``compute`` or ``network``. ``covers`` are the kinds of row that must
    have a resource in at least one part of the role; it is empty when a part of the role lacks the
    capability :class:`~worker.plugin.Audit`.
    """

    part: str
    role: str
    covers: frozenset[OwnerKind]
    owned: Callable[[RequestContext], Iterable[OwnedResource]]
    remove: Callable[[RequestContext, OwnedResource], None]


_COVERS: Mapping[str, frozenset[OwnerKind]] = {
    "driver": frozenset({OwnerKind.SHARE, OwnerKind.SNAPSHOT}),
    "compute": frozenset({OwnerKind.SHARE_SERVER}),
    "network": frozenset({OwnerKind.SHARE_SERVER}),
}


@dataclass(frozen=True, slots=True)
class ShareManager:
    """Calls the parts of one backend."""

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
                object=ObjectKind.SHARE_NETWORK.ref(network.id),
                code=ErrorCode.NETWORK_FAILED,
            )
        return helper.allocate_network(context, server, network, self.backend.ports_per_server)

    def deallocate_network(self, context: RequestContext, server: ShareServer) -> None:
        """Release a share server's allocations in every network helper."""
        for helper in self.backend.networks:
            helper.deallocate_network(context, server)

    def renew_network(self, context: RequestContext, server: ShareServer) -> None:
        """Renew the allocations of a share server that would expire."""
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
        """Create a share server, or find the one that an earlier attempt created."""
        assert self.backend.compute is not None, "a mode without servers has no such step"
        return self.backend.compute.get_share_server(
            context, server, network, info, security_services
        )

    def delete_share_server(self, context: RequestContext, server: ShareServer) -> None:
        """Delete a share server in the external system."""
        assert self.backend.compute is not None, "a mode without servers has no such step"
        self.backend.compute.delete_share_server(context, server)

    @property
    def is_watched(self) -> bool:
        """Whether the backend's servers can be watched for outages."""
        backend = self.backend
        watched = backend.compute if backend.mode.has_share_servers else backend.driver
        return backend.settings.host is not None and isinstance(watched, Watched | Ensure)

    def outages(self, servers: Sequence[ShareServer]) -> Mapping[str, Outage]:
        """Return the outage of each active server that does not serve, by its id."""
        compute = self.backend.compute
        assert compute is not None, "a mode without servers has none to watch"
        return compute.outages(servers) if isinstance(compute, Watched) else {}

    def serves(self, context: RequestContext) -> bool:
        """Return whether the predefined server serves (``single_svm``); True when unknown."""
        driver = self.backend.driver
        return not isinstance(driver, Ensure) or driver.serves(context)

    @property
    def can_ensure(self) -> bool:
        """Whether the driver restores exports; otherwise its storage system keeps them."""
        return isinstance(self.backend.driver, Ensure)

    def ensure_share(
        self, context: RequestContext, share: Share, server: ShareServer | None
    ) -> tuple[ExportLocation, ...]:
        """Restore the export of an existing share."""
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
        """Create a share, empty or with a snapshot's content; return its export locations."""
        driver = self.backend.driver
        if snapshot is None:
            return driver.create_share(context, share, server)
        return driver.create_share_from_snapshot(context, share, snapshot, server)

    def delete_share(
        self, context: RequestContext, share: Share, server: ShareServer | None
    ) -> None:
        """Delete a share and its export."""
        self.backend.driver.delete_share(context, share, server)

    def create_snapshot(
        self, context: RequestContext, snapshot: Snapshot, share: Share, server: ShareServer | None
    ) -> None:
        """Create a snapshot of a share's present content."""
        self.backend.driver.create_snapshot(context, snapshot, share, server)

    def delete_snapshot(
        self, context: RequestContext, snapshot: Snapshot, share: Share, server: ShareServer | None
    ) -> None:
        """Delete a snapshot."""
        self.backend.driver.delete_snapshot(context, snapshot, share, server)

    def update_access(
        self,
        context: RequestContext,
        share: Share,
        server: ShareServer | None,
        rules: Sequence[AccessRule],
        generation: int,
    ) -> None:
        """Replace a share's access rules by exactly these."""
        self.backend.driver.update_access(context, share, server, rules, generation)

    def extend_share(
        self, context: RequestContext, share: Share, size: int, server: ShareServer | None
    ) -> None:
        """Raise a share's limit to ``size`` GiB."""
        self._resize(share).extend_share(context, share, size, server)

    def share_size(self, context: RequestContext, share: Share, server: ShareServer | None) -> int:
        """Return a share's actual limit in GiB."""
        return self._resize(share).share_size(context, share, server)

    def _resize(self, share: Share) -> Resize:
        driver = self.backend.driver
        if not isinstance(driver, Resize):
            raise Fatal(
                f"The driver of backend {self.backend.name} cannot resize shares.",
                object=ObjectKind.SHARE.ref(share.id),
                code=ErrorCode.NOT_SUPPORTED,
            )
        return driver

    def report(self, context: RequestContext) -> Report:
        """Return the driver's pools and the kinds of share network that the backend accepts."""
        backend = self.backend
        return Report(
            mode=str(backend.mode),
            protocols=tuple(sorted(backend.driver.protocols)),
            network_kinds=tuple(sorted(backend.network_kinds)),
            can_extend=isinstance(backend.driver, Resize),
            is_watched=self.is_watched,
            pools=backend.driver.storage_pools(context),
            address_pools={
                domain: size
                for helper in backend.networks
                if isinstance(helper, AddressPools)
                for domain, size in helper.address_pools().items()
            },
        )

    def audit_targets(self, servers: Sequence[ShareServer]) -> Iterator[AuditTarget]:
        """Return the parts that can be audited, in the order in which orphans are removed.

        Resources on a server are removed before the server, and the server before its addresses.
        ``servers`` are the backend's active share servers.
        """
        driver = self.backend.driver
        if isinstance(driver, AuditOnServers):
            for server in servers:
                yield AuditTarget(
                    f"driver on {server.id}",
                    "driver",
                    frozenset(),
                    partial(driver.owned_on, server=server),
                    partial(_remove_on, driver, server),
                )
        for role, parts in self._roles().items():
            whole = all(isinstance(part, Audit) for part in parts.values())
            covers = _COVERS[role] if whole else frozenset[OwnerKind]()
            for name, part in parts.items():
                if isinstance(part, Audit):
                    yield AuditTarget(name, role, covers, part.owned, part.remove_orphan)

    def cannot_tell(self) -> list[str]:
        """The names of the parts that lack the capability Audit."""
        return [
            name
            for parts in self._roles().values()
            for name, part in parts.items()
            if not isinstance(part, Audit)
        ]

    def _roles(self) -> Mapping[str, Mapping[str, object]]:
        backend = self.backend
        names = [f"network {name}" for name in backend.settings.network_helpers]
        return {
            "driver": {"driver": backend.driver},
            "compute": {"compute": backend.compute} if backend.compute else {},
            "network": dict(zip(names, backend.networks, strict=True)),
        }


def _remove_on(
    driver: AuditOnServers, server: ShareServer, context: RequestContext, owned: OwnedResource
) -> None:
    driver.remove_orphan_on(context, server, owned)
