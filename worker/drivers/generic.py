"""Shares on this host's own disk, served over NFS by nfs-ganesha.

Storage (:mod:`worker.systems.storage`) and export (:mod:`worker.systems.ganesha`) are separate:
in ``single_svm`` the predefined server is an address of this host and its daemon is this
driver's; with share servers it is the compute helper's, which says in the server's attribute
``ganesha`` where it lives. After a reboot :meth:`GenericShareDriver.ensure_share` brings mount and
export back, and leaves content and rules alone.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final, Literal, cast

from pydantic import Field, IPvAnyAddress

from worker.drivers.base import Decommission, Ensure, Resize, ShareDriver
from worker.errors import ConfigurationError, Conflict, ErrorCode, Fatal
from worker.failpoints import failpoint
from worker.model import (
    AccessRule,
    DriverMode,
    ExportLocation,
    RequestContext,
    Share,
    ShareServer,
    Snapshot,
    StoragePool,
)
from worker.plugin import Options, Setting, ShellFor
from worker.systems.btrfs import BtrfsStorage
from worker.systems.ganesha import Ganesha
from worker.systems.images import ImageStorage
from worker.systems.local import LocalShell
from worker.systems.shell import Guarded, Shell
from worker.systems.storage import GIB, Storage

GANESHA_ATTRIBUTE: Final = "ganesha"
"""The share server attribute that names the directory of its NFS server."""
_PREDEFINED: Final = "predefined"

_BTRFS_POSSIBLE: Final = """
command -v mkfs.btrfs >/dev/null || exit 1
grep -qw btrfs /proc/filesystems || modprobe -q btrfs
"""


class GenericOptions(Options):
    """Options of the generic driver."""

    storage: Literal["auto", "btrfs", "images"] = Field(
        "auto",
        description="`btrfs`: a subvolume a share; `images`: an XFS image file a share; `auto`: "
        "btrfs where this host can, decided once.",
    )
    pool_size: int = Field(
        50, ge=1, description="GiB of the sparse btrfs image, where no `mount` is given."
    )
    mount: Path | None = Field(
        None,
        description="A directory on a mounted btrfs to keep the shares in, instead of an image.",
    )
    service_address: IPvAnyAddress | None = Field(
        None,
        description="`single_svm`: the address of this host that clients mount from; required.",
    )
    service_namespace: str | None = Field(
        None, description="`single_svm`: the network namespace that has `service_address`."
    )


class GenericShareDriver(ShareDriver, Resize, Ensure, Decommission):
    """The generic driver: a local file system a share, exported by nfs-ganesha."""

    OptionsModel: ClassVar[type[Options]] = GenericOptions
    modes: ClassVar[frozenset[DriverMode]] = frozenset(DriverMode)
    protocols: ClassVar[frozenset[str]] = frozenset({"NFS"})
    host_bound: ClassVar[bool] = True
    needs_shell: ClassVar[bool] = True

    def __init__(self, setting: Setting, options: Options, shell_for: ShellFor) -> None:
        super().__init__(setting, options, shell_for)
        self._options = cast("GenericOptions", options)
        single = setting.mode is DriverMode.SINGLE_SVM
        if single and self._options.service_address is None:
            raise ConfigurationError(
                f"Backend {setting.backend!r} is single_svm with the generic driver; set "
                f"driver.service_address to the address that clients mount from."
            )
        if not single and (self._options.service_address or self._options.service_namespace):
            raise ConfigurationError(
                f"Backend {setting.backend!r} is {setting.mode}: its share servers have addresses "
                f"of their own; leave driver.service_address and driver.service_namespace out."
            )

    def create_share(
        self, context: RequestContext, share: Share, server: ShareServer | None
    ) -> tuple[ExportLocation, ...]:
        """As :meth:`ShareDriver.create_share`."""
        storage = self._storage(context)
        storage.create(share.id, share.size)
        failpoint("create_share.after_storage")
        return self._exported(context, share, server, storage)

    def create_share_from_snapshot(
        self, context: RequestContext, share: Share, snapshot: Snapshot, server: ShareServer | None
    ) -> tuple[ExportLocation, ...]:
        """As :meth:`ShareDriver.create_share_from_snapshot`."""
        if share.size < snapshot.size:
            raise Fatal(
                f"Share {share.id} of {share.size} GiB cannot hold snapshot {snapshot.id} of "
                f"{snapshot.size} GiB; ask for at least that.",
                object=f"share {share.id}",
                field="size",
            )
        storage = self._storage(context)
        storage.create_from_snapshot(share.id, snapshot.id, share.size)
        failpoint("create_share.after_storage")
        return self._exported(context, share, server, storage)

    def delete_share(
        self, context: RequestContext, share: Share, server: ShareServer | None
    ) -> None:
        """As :meth:`ShareDriver.delete_share`."""
        if self.setting.mode is DriverMode.SINGLE_SVM or (server and server.details):
            ganesha = self._ganesha(context, server)
            if ganesha.exists():
                ganesha.remove_export(share.id)
        self._storage(context).delete(share.id)

    def create_snapshot(
        self, context: RequestContext, snapshot: Snapshot, share: Share, server: ShareServer | None
    ) -> None:
        """As :meth:`ShareDriver.create_snapshot`."""
        del server  # what clients have written is in the file system already
        self._storage(context).snapshot(snapshot.id, share.id)

    def delete_snapshot(
        self, context: RequestContext, snapshot: Snapshot, share: Share, server: ShareServer | None
    ) -> None:
        """As :meth:`ShareDriver.delete_snapshot`."""
        del share, server
        self._storage(context).delete_snapshot(snapshot.id)

    def update_access(
        self,
        context: RequestContext,
        share: Share,
        server: ShareServer | None,
        rules: Sequence[AccessRule],
        generation: int,
    ) -> None:
        """As :meth:`ShareDriver.update_access`."""
        path = self._storage(context).path(share.id)
        self._serving(context, server).set_rules(share.id, path, rules, generation)

    def extend_share(
        self, context: RequestContext, share: Share, new_size: int, server: ShareServer | None
    ) -> None:
        """As :meth:`Resize.extend_share`; never lowers a limit, whatever is used."""
        del server
        storage = self._storage(context)
        limit = storage.limit(share.id)
        if new_size * GIB < limit:
            raise Fatal(
                f"Share {share.id} has {limit // GIB} GiB, of which {storage.used(share.id)} bytes "
                f"are used; it cannot be made smaller ({new_size} GiB).",
                object=f"share {share.id}",
                field="size",
            )
        storage.grow(share.id, new_size)

    def share_size(self, context: RequestContext, share: Share, server: ShareServer | None) -> int:
        """As :meth:`Resize.share_size`."""
        del server
        return self._storage(context).limit(share.id) // GIB

    def ensure_share(
        self, context: RequestContext, share: Share, server: ShareServer | None
    ) -> tuple[ExportLocation, ...]:
        """As :meth:`Ensure.ensure_share`."""
        storage = self._storage(context)
        storage.restore(share.id)
        return self._exported(context, share, server, storage)

    def serves(self) -> bool:
        """As :meth:`Ensure.serves`; one that was never set up has nothing to serve."""
        ganesha = self._ganesha(RequestContext(project_id=""), None)
        return not ganesha.exists() or ganesha.running()

    def storage_pools(self) -> tuple[StoragePool, ...]:
        """As :meth:`ShareDriver.storage_pools`; one pool, named as the kind of storage."""
        storage = self._storage(None)
        capacity = storage.capacity()
        return (
            StoragePool(
                name=storage.kind,
                total_gib=capacity.total // GIB,
                free_gib=capacity.free // GIB,
                capabilities={"storage": storage.kind, "snapshots": "true", "extend": "true"},
            ),
        )

    def decommission(self, context: RequestContext) -> None:
        """As :meth:`Decommission.decommission`."""
        shell = self._shell(context, None)
        if shell.read_file(self._record) is None:
            return
        storage = self._storage(context)
        if left := storage.contents():
            raise Conflict(
                f"Backend {self.setting.backend!r} still holds {len(left)} shares or snapshots "
                f"({', '.join(left[:3])}...); delete them first."
            )
        if self.setting.mode is DriverMode.SINGLE_SVM:
            ganesha = self._ganesha(context, None)
            if ganesha.exists():
                ganesha.stop()
            shell.run(["rm", "-rf", "--one-file-system", ganesha.directory])
        storage.close()
        shell.remove_file(self._record)

    @property
    def _record(self) -> str:
        """Where it is kept which kind of storage ``auto`` decided for."""
        return f"{self.setting.state_dir}/storage.kind"

    def _exported(
        self, context: RequestContext, share: Share, server: ShareServer | None, storage: Storage
    ) -> tuple[ExportLocation, ...]:
        self._serving(context, server).add_export(share.id, storage.path(share.id))
        return tuple(
            ExportLocation(path=f"{_in_path(address)}:/shares/{share.id}", preferred=number == 0)
            for number, address in enumerate(self._addresses(server))
        )

    def _addresses(self, server: ShareServer | None) -> tuple[str, ...]:
        if self.setting.mode is DriverMode.SINGLE_SVM:
            return (str(self._options.service_address),)
        if server is None or server.details is None:
            raise Fatal("The share's server is not built, so nothing can be exported on it.")
        return server.details.addresses

    def _serving(self, context: RequestContext, server: ShareServer | None) -> Ganesha:
        ganesha = self._ganesha(context, server)
        ganesha.ensure_running()
        return ganesha

    def _ganesha(self, context: RequestContext, server: ShareServer | None) -> Ganesha:
        if self.setting.mode is DriverMode.SINGLE_SVM:
            namespace = self._options.service_namespace
            shell = LocalShell(namespace) if namespace else self.shell_for(None)
            directory = f"{self.setting.state_dir}/{_PREDEFINED}"
            address = str(self._options.service_address)
            return Ganesha(Guarded(shell, context.guard), directory, address)
        if server is None or server.details is None:
            raise Fatal("The share's server is not built, so nothing can be exported on it.")
        attributes = server.details.attributes
        if GANESHA_ATTRIBUTE not in attributes:
            raise Fatal(
                f"Share server {server.id} has no NFS server that the generic driver can use "
                f"(its attribute {GANESHA_ATTRIBUTE!r} is missing); use another compute helper.",
                object=f"share_server {server.id}",
                code=ErrorCode.CONFIGURATION,
            )
        bind = attributes["ganesha_bind"]
        return Ganesha(self._shell(context, server), attributes[GANESHA_ATTRIBUTE], bind)

    def _shell(self, context: RequestContext | None, server: ShareServer | None) -> Shell:
        shell = self.shell_for(server)
        return Guarded(shell, context.guard) if context else shell

    def _storage(self, context: RequestContext | None) -> Storage:
        """Return the storage, opened; on the host itself, whatever server exports from it."""
        shell = self._shell(context, None)
        kind = shell.read_file(self._record)
        wanted = self._options.storage
        if kind is None:
            kind = wanted
            if kind == "auto":
                possible = shell.run(["sh", "-euc", _BTRFS_POSSIBLE], check=False).exit_code == 0
                kind = "btrfs" if possible or self._options.mount else "images"
            shell.write_file(self._record, kind)
        elif wanted not in {"auto", kind}:
            raise Fatal(
                f"Backend {self.setting.backend!r} keeps its shares as {kind}, but is configured "
                f"for {wanted}; set driver.storage back, or decommission it first.",
                code=ErrorCode.CONFIGURATION,
            )
        storage = self._made(kind, shell)
        storage.open()
        return storage

    def _made(self, kind: str, shell: Shell) -> Storage:
        root = posixpath.join(str(self.setting.state_dir), "storage")
        if kind == ImageStorage.kind:
            return ImageStorage(shell, root)
        mount = self._options.mount
        return BtrfsStorage(
            shell,
            root,
            pool_size=self._options.pool_size,
            mount=None if mount is None else str(mount),
            name=self.setting.backend,
        )


def _in_path(address: str) -> str:
    return f"[{address}]" if ":" in address else address
