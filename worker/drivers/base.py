"""The share driver's interface: storage only (docs/explanation/architecture.md).

Optional capabilities are small ABCs of their own (mixin interfaces). The scheduler refuses a
request that needs one which the backend's driver lacks.
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
    """Makes, exports and removes shares on one storage system.

    Every call may be repeated with the same arguments after any crash. Outside names contain the
    row's own id; deleting what is gone is fine. ``server`` is None in ``single_svm`` mode.
    ``context.guard()`` comes before every changing call outside.
    """

    OptionsModel: ClassVar[type[Options]] = Options
    modes: ClassVar[frozenset[DriverMode]]
    protocols: ClassVar[frozenset[str]] = frozenset({"NFS"})
    host_bound: ClassVar[bool] = False
    """Whether the storage is the local disk of the host that its backend names."""
    needs_shell: ClassVar[bool] = False
    """Whether it works through a shell on the share server; in ``single_svm`` that is the host."""
    ports_per_server: ClassVar[int] = 1
    """How many addresses it wants a server to have; the larger of helper's and driver's wins."""

    def __init__(self, backend: BackendContext, options: Options, shell_for: ShellFor) -> None:
        self.backend = backend
        self.options = options
        self.shell_for = shell_for

    @abstractmethod
    def create_share(
        self, context: RequestContext, share: Share, server: ShareServer | None
    ) -> tuple[ExportLocation, ...]:
        """Make an empty share that nobody has access to yet, and say where clients find it."""

    @abstractmethod
    def create_share_from_snapshot(
        self, context: RequestContext, share: Share, snapshot: Snapshot, server: ShareServer | None
    ) -> tuple[ExportLocation, ...]:
        """Make a share with the snapshot's content and ``share.size`` as its limit."""

    @abstractmethod
    def delete_share(
        self, context: RequestContext, share: Share, server: ShareServer | None
    ) -> None:
        """Remove the share and its export; gone is fine."""

    @abstractmethod
    def create_snapshot(
        self, context: RequestContext, snapshot: Snapshot, share: Share, server: ShareServer | None
    ) -> None:
        """Keep the share's present content under the snapshot's id."""

    @abstractmethod
    def delete_snapshot(
        self, context: RequestContext, snapshot: Snapshot, share: Share, server: ShareServer | None
    ) -> None:
        """Remove the snapshot; gone is fine."""

    @abstractmethod
    def update_access(
        self,
        context: RequestContext,
        share: Share,
        server: ShareServer | None,
        rules: Sequence[AccessRule],
        generation: int,
    ) -> None:
        """Enforce exactly these rules.

        ``generation`` grows with every change of the share's rules. A driver remembers the newest
        it has enforced beside the export and ignores an older one, so the last word wins
        whatever was lost or repeated in between.
        """

    @abstractmethod
    def storage_pools(self, context: RequestContext) -> tuple[StoragePool, ...]:
        """What the backend can still hold."""


class Resize(ABC):
    """Capability of a driver that makes shares larger."""

    @abstractmethod
    def extend_share(
        self, context: RequestContext, share: Share, new_size: int, server: ShareServer | None
    ) -> None:
        """Raise the share's limit to ``new_size`` GiB; being there already is fine.

        Raises :class:`~worker.errors.Fatal` for a size below the present limit, which stays.
        """

    @abstractmethod
    def share_size(self, context: RequestContext, share: Share, server: ShareServer | None) -> int:
        """Read the real limit back, in GiB (after an extend that failed)."""


class AuditOnServers(ABC):
    """As :class:`~worker.plugin.Audit`, for what a driver keeps on share servers.

    It is asked once for every share server of the backend that serves.
    """

    @abstractmethod
    def owned_on(self, context: RequestContext, server: ShareServer) -> Iterable[OwnedResource]:
        """List what there is on a share server, as :meth:`~worker.plugin.Audit.owned`."""

    @abstractmethod
    def remove_orphan_on(
        self, context: RequestContext, server: ShareServer, owned: OwnedResource
    ) -> None:
        """Remove it there, as :meth:`~worker.plugin.Audit.remove_orphan`."""


class Ensure(ABC):
    """Capability of a driver that serves again what a reboot or a person took away.

    Drivers whose storage system keeps its own exports do without.
    """

    @abstractmethod
    def ensure_share(
        self, context: RequestContext, share: Share, server: ShareServer | None
    ) -> tuple[ExportLocation, ...]:
        """Serve a share that was created before, with the content that it has.

        What is served already is left alone. Rules may be missing afterwards: ``update_access``
        follows. Raises :class:`~worker.errors.Fatal` when the share's data is not there; it is
        never made anew.
        """

    @abstractmethod
    def serves(self, context: RequestContext) -> bool:
        """``single_svm``: whether the predefined server's file server runs, where it should."""


class Decommission(ABC):
    """Capability of a driver that leaves the host as it was before the driver came."""

    @abstractmethod
    def decommission(self, context: RequestContext) -> None:
        """Remove what the driver keeps besides shares (daemons, mounts, images, records).

        Raises :class:`~worker.errors.Conflict` while shares or snapshots exist.
        """
