"""The interface of a share driver: storage only (docs/explanation/architecture.md).

Optional capabilities are separate small ABCs (mixin interfaces). The scheduler refuses a request
that needs a capability that the backend's driver lacks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

from worker.model import (
    AccessRule,
    DriverMode,
    ExportLocation,
    OwnedResource,
    RequestContext,
    Share,
    ShareServer,
    Snapshot,
    StoragePool,
)
from worker.plugin import BackendContext, Options
from worker.systems.shell.base import ShellFor


class ShareDriver(ABC):
    """Creates, exports and deletes shares on one storage system.

    Every method may be called again with the same arguments after a crash at any point. Names in
    the storage system contain the row's id. Deleting an object that is gone succeeds. ``server``
    is None in ``single_svm`` mode. ``context.guard()`` is called before every changing call to the
    external system.
    """

    OptionsModel: ClassVar[type[Options]] = Options
    modes: ClassVar[frozenset[DriverMode]]
    protocols: ClassVar[frozenset[str]] = frozenset({"NFS"})
    host_bound: ClassVar[bool] = False
    """Whether the storage is a local disk, so that the backend must name its host."""
    needs_shell: ClassVar[bool] = False
    """Whether the driver runs commands on the share server (in ``single_svm``: on this host)."""
    ports_per_server: ClassVar[int] = 1
    """Number of addresses a server needs; the larger of the driver's and the helper's is used."""

    def __init__(self, backend: BackendContext, options: Options, shell_for: ShellFor) -> None:
        self.backend = backend
        self.options = options
        self.shell_for = shell_for

    @abstractmethod
    def create_share(
        self, context: RequestContext, share: Share, server: ShareServer | None
    ) -> tuple[ExportLocation, ...]:
        """Create an empty share of ``share.size`` GiB without access rules; return its exports."""

    @abstractmethod
    def create_share_from_snapshot(
        self, context: RequestContext, share: Share, snapshot: Snapshot, server: ShareServer | None
    ) -> tuple[ExportLocation, ...]:
        """Create a share of ``share.size`` GiB with the snapshot's content; return its exports."""

    @abstractmethod
    def delete_share(
        self, context: RequestContext, share: Share, server: ShareServer | None
    ) -> None:
        """Delete the share and its export; succeed when they are gone."""

    @abstractmethod
    def create_snapshot(
        self, context: RequestContext, snapshot: Snapshot, share: Share, server: ShareServer | None
    ) -> None:
        """Create a snapshot of the share's present content under the snapshot's id."""

    @abstractmethod
    def delete_snapshot(
        self, context: RequestContext, snapshot: Snapshot, share: Share, server: ShareServer | None
    ) -> None:
        """Delete the snapshot; succeed when it is gone."""

    @abstractmethod
    def update_access(
        self,
        context: RequestContext,
        share: Share,
        server: ShareServer | None,
        rules: Sequence[AccessRule],
        generation: int,
    ) -> None:
        """Replace the share's access rules by exactly these.

        ``generation`` grows with every change of the share's rules. A driver stores the newest
        generation that it has enforced with the export and ignores an older one, so the newest
        rules stay in force although messages are lost or repeated.
        """

    @abstractmethod
    def storage_pools(self, context: RequestContext) -> tuple[StoragePool, ...]:
        """Return the backend's pools with their total and free capacity in GiB."""


class Resize(ABC):
    """Capability of a driver that can enlarge shares."""

    @abstractmethod
    def extend_share(
        self, context: RequestContext, share: Share, new_size: int, server: ShareServer | None
    ) -> None:
        """Raise the share's limit to ``new_size`` GiB; succeed when it has that limit already.

        Raises :class:`~worker.errors.Fatal` for a size below the present limit, which is kept.
        """

    @abstractmethod
    def share_size(self, context: RequestContext, share: Share, server: ShareServer | None) -> int:
        """Return the share's actual limit in GiB; called after a failed extend."""


class AuditOnServers(ABC):
    """Capability of a driver that lists and removes the resources it created on share servers.

    Like :class:`~worker.plugin.Audit`, but called once for every active share server of the
    backend.
    """

    @abstractmethod
    def owned_on(self, context: RequestContext, server: ShareServer) -> Iterable[OwnedResource]:
        """List the marked resources on a share server, like :meth:`~worker.plugin.Audit.owned`."""

    @abstractmethod
    def remove_orphan_on(
        self, context: RequestContext, server: ShareServer, owned: OwnedResource
    ) -> None:
        """Remove a resource there, like :meth:`~worker.plugin.Audit.remove_orphan`."""


class Ensure(ABC):
    """Capability of a driver that restores mounts and exports lost in a reboot or by hand.

    A driver for a storage system that keeps its own exports does not need it.
    """

    @abstractmethod
    def ensure_share(
        self, context: RequestContext, share: Share, server: ShareServer | None
    ) -> tuple[ExportLocation, ...]:
        """Restore the export of an existing share, with its content; return its exports.

        An export that works is not changed. Access rules may be missing afterwards: the engine
        calls ``update_access`` next. Raises :class:`~worker.errors.Fatal` when the share's data is
        missing; a driver never creates an empty share in its place.
        """

    @abstractmethod
    def serves(self, context: RequestContext) -> bool:
        """Return whether the predefined server has a running file server, if it needs one."""


class Decommission(ABC):
    """Capability of a driver that can remove its own set-up from the host."""

    @abstractmethod
    def decommission(self, context: RequestContext) -> None:
        """Remove the driver's own set-up: daemons, mounts, images and records.

        Raises :class:`~worker.errors.Conflict` while shares or snapshots exist.
        """
