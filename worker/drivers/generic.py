"""Shares on a machine's own disk, served over NFS by nfs-ganesha.

Storage (:mod:`worker.systems.storage`) and export (:mod:`worker.systems.exports.ganesha`) are
separate. In ``single_svm`` the predefined server is an address of this host, and the driver runs
its NFS daemon. With share servers the compute helper runs the daemon and names its directory in the
server's attribute ``ganesha``. After a reboot :meth:`GenericShareDriver.ensure_share` restores
mount and export, and does not change content or rules.

Servers that are namespaces of this host use this host's storage. Servers that are separate machines
have their own storage, in the directory named by their attribute ``storage``; a snapshot and the
shares created from it are then on the same server.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Final, Literal

from pydantic import Field, IPvAnyAddress

from worker.drivers.base import AuditOnServers, Decommission, Ensure, Resize, ShareDriver
from worker.errors import ConfigurationError, Conflict, ErrorCode, Fatal, ObjectKind
from worker.failpoints import failpoint
from worker.model import (
    AccessRule,
    DriverMode,
    ExportLocation,
    OwnedResource,
    OwnerKind,
    RequestContext,
    Share,
    ShareServer,
    Snapshot,
    StoragePool,
)
from worker.plugin import Audit, BackendContext, Options
from worker.systems.exports.ganesha import Ganesha, check_directory
from worker.systems.exports.probe import NfsServer, hanging
from worker.systems.shell.base import Guarded, Shell, ShellFor
from worker.systems.shell.local import LocalShell
from worker.systems.storage.base import GIB, Storage
from worker.systems.storage.btrfs import BtrfsStorage
from worker.systems.storage.images import ImageStorage

GANESHA_ATTRIBUTE: Final = "ganesha"
"""The share server attribute with the directory of its NFS server."""
STORAGE_ATTRIBUTE: Final = "storage"
"""The attribute of a server that is a separate machine: the directory for its storage."""
_PREDEFINED: Final = "predefined"
_FOUND: Final = {
    "shares": "share",
    "snapshots": "snapshot",
    "mounts": "mount",
    "loops": "loop device",
}
"""Kinds of resource in an audit, by the storage's names for them."""
_ELSEWHERE: Final = "servers"
"""Name of the one pool that all servers on separate machines share."""

_BTRFS_POSSIBLE: Final = """
command -v mkfs.btrfs >/dev/null || exit 1
grep -qw btrfs /proc/filesystems || modprobe -q btrfs
"""


class GenericOptions(Options):
    """Options of the generic driver."""

    storage: Literal["auto", "btrfs", "images"] = Field(
        "auto",
        description="`btrfs`: a subvolume a share; `images`: an XFS image file a share; `auto`: "
        "btrfs where the machine can, decided once.",
    )
    pool_size: int = Field(
        50,
        ge=1,
        description="GiB of the sparse btrfs image, where no `mount` is given. On share servers "
        "that are machines of their own each has one: keep `max_share_server_size` below it.",
    )
    capacity: int | None = Field(
        None,
        ge=1,
        description="Share servers that are machines of their own: GiB of shares that all of them "
        "together may be given; required there. What exists is counted against it.",
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


class GenericShareDriver(ShareDriver, Resize, Ensure, Decommission, Audit, AuditOnServers):
    """The generic driver: a local file system a share, exported by nfs-ganesha."""

    OptionsModel: ClassVar[type[Options]] = GenericOptions
    options: GenericOptions
    modes: ClassVar[frozenset[DriverMode]] = frozenset(DriverMode)
    protocols: ClassVar[frozenset[str]] = frozenset({"NFS"})
    needs_shell: ClassVar[bool] = True

    def __init__(self, backend: BackendContext, options: Options, shell_for: ShellFor) -> None:
        super().__init__(backend, options, shell_for)
        if not backend.servers_elsewhere:
            check_directory(str(backend.state_dir))
        single = backend.mode is DriverMode.SINGLE_SVM
        if single and self.options.service_address is None:
            raise ConfigurationError(
                f"Backend {backend.name!r} is single_svm with the generic driver; set "
                f"driver.service_address to the address that clients mount from."
            )
        if not single and (self.options.service_address or self.options.service_namespace):
            raise ConfigurationError(
                f"Backend {backend.name!r} is {backend.mode}: its share servers have addresses "
                f"of their own; leave driver.service_address and driver.service_namespace out."
            )
        if backend.servers_elsewhere is (self.options.capacity is None):
            raise ConfigurationError(
                f"Backend {backend.name!r} keeps its shares on "
                + (
                    "its share servers, whose number nobody knows; set driver.capacity to the GiB "
                    "that they may hold together."
                    if backend.servers_elsewhere
                    else "this host, whose disk says what it holds; leave driver.capacity out."
                )
            )

    def create_share(
        self, context: RequestContext, share: Share, server: ShareServer | None
    ) -> tuple[ExportLocation, ...]:
        """Implement :meth:`ShareDriver.create_share`."""
        storage = self._storage(context, server)
        storage.create(share.id, share.size)
        failpoint("create_share.after_storage")
        return self._exported(context, share, server, storage)

    def create_share_from_snapshot(
        self, context: RequestContext, share: Share, snapshot: Snapshot, server: ShareServer | None
    ) -> tuple[ExportLocation, ...]:
        """Implement :meth:`ShareDriver.create_share_from_snapshot`."""
        if share.size < snapshot.size:
            raise Fatal(
                f"Share {share.id} of {share.size} GiB cannot hold snapshot {snapshot.id} of "
                f"{snapshot.size} GiB; ask for at least that.",
                object=ObjectKind.SHARE.ref(share.id),
                field="size",
                code=ErrorCode.INVALID_REQUEST,
            )
        storage = self._storage(context, server)
        if self.backend.servers_elsewhere:
            _check_here(storage, share, snapshot)
        storage.create_from_snapshot(share.id, snapshot.id, share.size)
        failpoint("create_share.after_storage")
        return self._exported(context, share, server, storage)

    def delete_share(
        self, context: RequestContext, share: Share, server: ShareServer | None
    ) -> None:
        """Implement :meth:`ShareDriver.delete_share`."""
        built = server is not None and server.details is not None
        if self.backend.mode is DriverMode.SINGLE_SVM or built:
            self._unexport(self._ganesha(context, server), share.id)
        if built or not self.backend.servers_elsewhere:
            self._storage(context, server).delete(share.id)

    def create_snapshot(
        self, context: RequestContext, snapshot: Snapshot, share: Share, server: ShareServer | None
    ) -> None:
        """Implement :meth:`ShareDriver.create_snapshot`."""
        # What clients have written is in the file system already.
        self._storage(context, server).snapshot(snapshot.id, share.id)

    def delete_snapshot(
        self, context: RequestContext, snapshot: Snapshot, share: Share, server: ShareServer | None
    ) -> None:
        """Implement :meth:`ShareDriver.delete_snapshot`."""
        del share
        self._storage(context, server).delete_snapshot(snapshot.id)

    def update_access(
        self,
        context: RequestContext,
        share: Share,
        server: ShareServer | None,
        rules: Sequence[AccessRule],
        generation: int,
    ) -> None:
        """Implement :meth:`ShareDriver.update_access`."""
        path = self._storage(context, server).path(share.id)
        self._serving(context, server).set_rules(share.id, path, rules, generation)

    def extend_share(
        self, context: RequestContext, share: Share, new_size: int, server: ShareServer | None
    ) -> None:
        """Implement :meth:`Resize.extend_share`; never lowers a limit, whatever is used."""
        storage = self._storage(context, server)
        limit = storage.limit(share.id)
        if new_size * GIB < limit:
            raise Fatal(
                f"Share {share.id} has {limit // GIB} GiB, of which {storage.used(share.id)} bytes "
                f"are used; it cannot be made smaller ({new_size} GiB).",
                object=ObjectKind.SHARE.ref(share.id),
                field="size",
                code=ErrorCode.INVALID_REQUEST,
            )
        storage.grow(share.id, new_size)

    def share_size(self, context: RequestContext, share: Share, server: ShareServer | None) -> int:
        """Implement :meth:`Resize.share_size`."""
        return self._storage(context, server).limit(share.id) // GIB

    def ensure_share(
        self, context: RequestContext, share: Share, server: ShareServer | None
    ) -> tuple[ExportLocation, ...]:
        """Implement :meth:`Ensure.ensure_share`."""
        storage = self._storage(context, server)
        storage.restore(share.id)
        if server is None and self._hangs():
            self._ganesha(context, None).stop()
        return self._exported(context, share, server, storage)

    def serves(self, context: RequestContext) -> bool:
        """Implement :meth:`Ensure.serves`; a server that was never set up counts as serving."""
        ganesha = self._ganesha(context, None)
        return not ganesha.exists() or (ganesha.running() and not self._hangs())

    def storage_pools(self, context: RequestContext) -> tuple[StoragePool, ...]:
        """Implement :meth:`ShareDriver.storage_pools`: one pool, named after the kind of storage.

        Servers on separate machines are one pool of the configured capacity, reported as entirely
        free: placement subtracts the sizes of existing shares.
        """
        if self.options.capacity is not None:
            return (_pool(_ELSEWHERE, self.options.storage, *2 * [self.options.capacity]),)
        storage = self._storage(context, None)
        capacity = storage.capacity()
        return (_pool(storage.kind, storage.kind, capacity.total // GIB, capacity.free // GIB),)

    def decommission(self, context: RequestContext) -> None:
        """Implement :meth:`Decommission.decommission`; storage on servers is deleted with them."""
        if self.backend.servers_elsewhere:
            return
        shell = self._shell(context, None)
        record = self._record(self._base(None))
        if shell.read_file(record) is None:
            return
        storage = self._storage(context, None)
        if left := storage.contents():
            raise Conflict(
                f"Backend {self.backend.name!r} still holds {len(left)} shares or snapshots "
                f"({', '.join(left[:3])}...); delete them first."
            )
        if self.backend.mode is DriverMode.SINGLE_SVM:
            ganesha = self._ganesha(context, None)
            if ganesha.exists():
                ganesha.stop()
            shell.run(["rm", "-rf", "--one-file-system", ganesha.directory])
        storage.close()
        shell.remove_file(record)

    def owned(self, context: RequestContext) -> Iterator[OwnedResource]:
        """Implement :meth:`Audit.owned`: stored data, and the predefined server's exports."""
        if not self.backend.servers_elsewhere:
            yield from _stored(self._storage(context, None))
        if self.backend.mode is DriverMode.SINGLE_SVM:
            yield from _exported(self._ganesha(context, None))

    def remove_orphan(self, context: RequestContext, owned: OwnedResource) -> None:
        """Implement :meth:`Audit.remove_orphan`: remove the whole share or snapshot."""
        if self.backend.mode is DriverMode.SINGLE_SVM and owned.owner_kind is OwnerKind.SHARE:
            self._unexport(self._ganesha(context, None), owned.owner_id)
        _remove_stored(self._storage(context, None), owned)

    def owned_on(self, context: RequestContext, server: ShareServer) -> Iterator[OwnedResource]:
        """Implement :meth:`AuditOnServers.owned_on`: exports, and storage on the server itself."""
        if self.backend.servers_elsewhere:
            yield from _stored(self._storage(context, server))
        yield from _exported(self._ganesha(context, server))

    def remove_orphan_on(
        self, context: RequestContext, server: ShareServer, owned: OwnedResource
    ) -> None:
        """Implement :meth:`AuditOnServers.remove_orphan_on`."""
        if owned.owner_kind is OwnerKind.SHARE:
            self._unexport(self._ganesha(context, server), owned.owner_id)
        if self.backend.servers_elsewhere:
            _remove_stored(self._storage(context, server), owned)

    @staticmethod
    def _record(base: str) -> str:
        """The file that records which kind of storage ``auto`` chose."""
        return f"{base}/storage.kind"

    def _exported(
        self, context: RequestContext, share: Share, server: ShareServer | None, storage: Storage
    ) -> tuple[ExportLocation, ...]:
        self._serving(context, server).add_export(share.id, storage.path(share.id))
        return tuple(
            ExportLocation(path=f"{_in_path(address)}:/shares/{share.id}", preferred=number == 0)
            for number, address in enumerate(self._addresses(server))
        )

    def _addresses(self, server: ShareServer | None) -> tuple[str, ...]:
        if self.backend.mode is DriverMode.SINGLE_SVM:
            return (str(self.options.service_address),)
        if server is None or server.details is None:
            raise Fatal(
                "The share's server is not built, so nothing can be exported on it.",
                code=ErrorCode.SHARE_SERVER_FAILED,
            )
        return server.details.addresses

    def _serving(self, context: RequestContext, server: ShareServer | None) -> Ganesha:
        ganesha = self._ganesha(context, server)
        ganesha.ensure_running()
        return ganesha

    def _ganesha(self, context: RequestContext, server: ShareServer | None) -> Ganesha:
        if self.backend.mode is DriverMode.SINGLE_SVM:
            namespace = self.options.service_namespace
            shell = LocalShell(namespace) if namespace else self.shell_for(None)
            directory = f"{self.backend.state_dir}/{_PREDEFINED}"
            address = str(self.options.service_address)
            return Ganesha(Guarded(shell, context.guard), directory, address)
        directory = self._attribute(server, GANESHA_ATTRIBUTE, "NFS server")
        bind = self._attribute(server, "ganesha_bind", "address for its NFS server")
        return Ganesha(self._shell(context, server), directory, bind)

    def _hangs(self) -> bool:
        """Return whether the predefined server's NFS server does not answer."""
        namespace = self.options.service_namespace or ""
        return bool(hanging({"": NfsServer(namespace, str(self.options.service_address))}))

    @staticmethod
    def _attribute(server: ShareServer | None, name: str, what: str) -> str:
        if server is None or server.details is None:
            raise Fatal(
                "The share's server is not built, so nothing can be done on it.",
                code=ErrorCode.SHARE_SERVER_FAILED,
            )
        value = server.details.attributes.get(name)
        if value is None:
            raise Fatal(
                f"Share server {server.id} has no {what} that the generic driver can use "
                f"(its attribute {name!r} is missing); use another compute helper.",
                object=ObjectKind.SHARE_SERVER.ref(server.id),
                code=ErrorCode.CONFIGURATION,
            )
        return value

    @staticmethod
    def _unexport(ganesha: Ganesha, share_id: str) -> None:
        if ganesha.exists():
            ganesha.remove_export(share_id)

    def _shell(self, context: RequestContext, server: ShareServer | None) -> Shell:
        return Guarded(self.shell_for(server), context.guard)

    def _base(self, server: ShareServer | None) -> str:
        """Return the storage's directory on the machine that has the storage."""
        if self.backend.servers_elsewhere:
            return self._attribute(server, STORAGE_ATTRIBUTE, "directory for storage")
        return str(self.backend.state_dir)

    def _storage(self, context: RequestContext, server: ShareServer | None) -> Storage:
        """Return the opened storage: the server's own on a separate machine, else this host's."""
        shell = self._shell(context, server if self.backend.servers_elsewhere else None)
        base = self._base(server)
        kind = shell.read_file(self._record(base))
        wanted = self.options.storage
        if kind is None:
            kind = wanted
            if kind == "auto":
                possible = shell.run(["sh", "-euc", _BTRFS_POSSIBLE], check=False).exit_code == 0
                kind = "btrfs" if possible or self.options.mount else "images"
            shell.write_file(self._record(base), kind)
        elif wanted not in {"auto", kind}:
            raise Fatal(
                f"Backend {self.backend.name!r} keeps its shares as {kind}, but is configured "
                f"for {wanted}; set driver.storage back, or decommission it first.",
                code=ErrorCode.CONFIGURATION,
            )
        storage = self._made(kind, shell, base)
        storage.open()
        return storage

    def _made(self, kind: str, shell: Shell, base: str) -> Storage:
        root = posixpath.join(base, "storage")
        if kind == ImageStorage.kind:
            return ImageStorage(shell, root)
        mount = self.options.mount
        return BtrfsStorage(
            shell,
            root,
            pool_size=self.options.pool_size,
            mount=None if mount is None else str(mount),
            name=self.backend.name,
        )


def _check_here(storage: Storage, share: Share, snapshot: Snapshot) -> None:
    """Refuse a snapshot on another server, unless the share exists already.

    A repeated call may come after the snapshot was deleted.
    """
    if not {snapshot.id, share.id} & set(storage.contents()):
        raise Fatal(
            f"Snapshot {snapshot.id} is not on share server {share.share_server_id}, which has "
            f"room for share {share.id}, and data does not move between share servers; make room "
            f"on the snapshot's own server, or copy as a client.",
            object=ObjectKind.SHARE.ref(share.id),
            code=ErrorCode.NOT_SUPPORTED,
        )


def _pool(name: str, storage: str, total: int, free: int) -> StoragePool:
    capabilities = {"storage": storage, "snapshots": "true", "extend": "true"}
    return StoragePool(name=name, total_gib=total, free_gib=free, capabilities=capabilities)


def _in_path(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _stored(storage: Storage) -> Iterator[OwnedResource]:
    for kind, thing in storage.found():
        owner = OwnerKind.SNAPSHOT if kind == "snapshots" else OwnerKind.SHARE
        yield OwnedResource(_FOUND[kind], thing, owner, thing)


def _exported(ganesha: Ganesha) -> Iterator[OwnedResource]:
    for share_id in ganesha.exported():
        yield OwnedResource("export", share_id, OwnerKind.SHARE, share_id)


def _remove_stored(storage: Storage, owned: OwnedResource) -> None:
    if owned.owner_kind is OwnerKind.SNAPSHOT:
        storage.delete_snapshot(owned.owner_id)
        return
    storage.delete(owned.owner_id)
    storage.detach(owned.owner_id)
