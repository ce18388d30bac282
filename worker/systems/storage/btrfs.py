"""Shares as btrfs subvolumes, each with a qgroup limit (docs/facts.md, "Storage")."""

from __future__ import annotations

import posixpath
from typing import ClassVar, Final

from worker.systems.shell.base import Shell
from worker.systems.storage.base import GIB, MOUNT_OPTIONS, Capacity, Storage

_OPEN_IMAGE: Final = """
image=$1 pool=$2 bytes=$3
mountpoint -q "$pool" && exit 0
if [ ! -e "$image" ]; then
    rm -f "$image.new"
    truncate -s "$bytes" "$image.new"
    mkfs.btrfs -q -f -R quota "$image.new" >/dev/null
    sync "$image.new"
    mv "$image.new" "$image"
fi
mkdir -p "$pool"
mount -t btrfs -o loop,nosuid,nodev "$image" "$pool"
mkdir -p "$pool/shares" "$pool/snapshots"
"""

_OPEN_MOUNT: Final = """
mount=$1 data=$2
[ "$(findmnt -nro FSTYPE --target "$mount")" = btrfs ] || {
    echo "$mount is not btrfs" >&2
    exit 1
}
mkdir -p "$data/shares" "$data/snapshots"
btrfs qgroup show "$mount" >/dev/null 2>&1 || btrfs quota enable "$mount"
"""

# The limit comes before the share can be reached, and the sync before anybody is told of it.
_CREATE: Final = """
share=$1 bytes=$2 origin=${3:-}
if [ ! -e "$share" ]; then
    if [ -n "$origin" ]; then btrfs -q subvolume snapshot "$origin" "$share"
    else btrfs -q subvolume create "$share"; fi
fi
btrfs qgroup limit "$bytes" "$share"
[ -d "$share/data" ] || mkdir -m 0777 "$share/data"
btrfs filesystem sync "$share"
"""

# By subvolume id: that holds wherever in the file system the operator's directory lies.
_MOUNT: Final = """
share=$1 point=$2 options=$3
mkdir -p "$point"
mountpoint -q "$point" && exit 0
device=$(findmnt -nvro SOURCE --target "$share")
mount -t btrfs -o "subvolid=$(btrfs inspect-internal rootid "$share"),$options" "$device" "$point"
"""

_SNAPSHOT: Final = """
[ -e "$2" ] || btrfs -q subvolume snapshot -r "$1" "$2"
btrfs filesystem sync "$2"
"""

# Since Linux 6.12 the qgroup goes with its subvolume and destroying it first is refused; before,
# it stays behind and slows the file system down. So the destroy may fail.
_DELETE: Final = """
[ -e "$1" ] || exit 0
id=$(btrfs inspect-internal rootid "$1")
btrfs -q subvolume delete --commit-after "$1"
btrfs qgroup destroy "0/$id" "$(dirname "$1")" >/dev/null 2>&1 || :
"""

_LIMIT: Final = """
btrfs qgroup limit "$1" "$2"
btrfs filesystem sync "$2"
"""

_CLOSE: Final = """
while mountpoint -q "$1"; do umount "$1"; done
"""


class BtrfsStorage(Storage):
    """A subvolume a share, on an image file of our own or on the operator's btrfs.

    ``mount`` is a directory on a mounted btrfs; without it, a sparse image of ``pool_size`` GiB
    is made in ``root``. Limits count what a share refers to, so a share from a snapshot is
    charged for all its content, and a snapshot is charged to nobody.
    """

    kind: ClassVar[str] = "btrfs"

    def __init__(
        self, shell: Shell, root: str, *, pool_size: int, mount: str | None, name: str
    ) -> None:
        super().__init__(shell, root)
        self.pool_size = pool_size
        self.mount = mount
        self.name = name

    @property
    def data(self) -> str:
        """Return the directory that holds the subvolumes."""
        if self.mount is not None:
            return posixpath.join(self.mount, f"sharewright-{self.name}")
        return f"{self.root}/pool"

    def open(self) -> None:
        """Implement :meth:`Storage.open`."""
        self.command("mkdir", "-p", self.root, doing=f"make {self.root}")
        if self.mount is not None:
            self.script(_OPEN_MOUNT, self.mount, self.data, doing=f"use {self.mount} for shares")
            return
        size = str(self.pool_size * GIB)
        self.script(
            _OPEN_IMAGE, f"{self.root}/pool.img", self.data, size, doing="open the btrfs pool"
        )

    def create(self, share_id: str, size: int) -> None:
        """Implement :meth:`Storage.create`."""
        self._make(share_id, size, "")

    def create_from_snapshot(self, share_id: str, snapshot_id: str, size: int) -> None:
        """Implement :meth:`Storage.create_from_snapshot`."""
        self._make(share_id, size, self._snapshot(snapshot_id))

    def held_in(self, share_id: str) -> str:
        """Implement :meth:`Storage.held_in`: the subvolume."""
        return f"{self.data}/shares/{share_id}"

    def attach(self, share_id: str) -> None:
        """Implement :meth:`Storage.attach`."""
        point = self.mount_point(share_id)
        self.script(
            _MOUNT, self.held_in(share_id), point, MOUNT_OPTIONS, doing=f"mount share {share_id}"
        )

    def delete(self, share_id: str) -> None:
        """Implement :meth:`Storage.delete`."""
        self.unmount(share_id)
        self.script(_DELETE, self.held_in(share_id), doing=f"delete share {share_id}")

    def snapshot(self, snapshot_id: str, share_id: str) -> None:
        """Implement :meth:`Storage.snapshot`; takes milliseconds whatever the size."""
        self.script(
            _SNAPSHOT,
            self.held_in(share_id),
            self._snapshot(snapshot_id),
            doing=f"take snapshot {snapshot_id} of share {share_id}",
        )

    def delete_snapshot(self, snapshot_id: str) -> None:
        """Implement :meth:`Storage.delete_snapshot`."""
        self.script(_DELETE, self._snapshot(snapshot_id), doing=f"delete snapshot {snapshot_id}")

    def grow(self, share_id: str, size: int) -> None:
        """Implement :meth:`Storage.grow`."""
        self.script(
            _LIMIT, str(size * GIB), self.held_in(share_id), doing=f"extend share {share_id}"
        )

    def limit(self, share_id: str) -> int:
        """Implement :meth:`Storage.limit`; a share that has no limit yet has one of 0."""
        limit = self._qgroup(share_id)[3]
        return 0 if limit == "none" else int(limit)

    def used(self, share_id: str) -> int:
        """Implement :meth:`Storage.used`."""
        return int(self._qgroup(share_id)[1])

    def capacity(self) -> Capacity:
        """Implement :meth:`Storage.capacity`: a sparse image holds what the disk below it can."""
        where = [self.data] if self.mount is not None else [self.data, self.root]
        done = self.command("df", "-B1", "--output=size,avail", *where, doing="measure the pool")
        (total, free), *below = [
            (int(size), int(available))
            for size, available in (line.split() for line in done.stdout.splitlines()[1:])
        ]
        return Capacity(total, min([free, *(available for _, available in below)]))

    def close(self) -> None:
        """Implement :meth:`Storage.close`; an operator's file system stays mounted."""
        if self.mount is None:
            self.script(_CLOSE, self.data, doing="unmount the btrfs pool")
        else:
            self.command("rm", "-rf", "--one-file-system", self.data, doing="clear the mount")
        self.command("rm", "-rf", "--one-file-system", self.root, doing=f"remove {self.root}")

    def _make(self, share_id: str, size: int, origin: str) -> None:
        share = self.held_in(share_id)
        self.script(_CREATE, share, str(size * GIB), origin, doing=f"create share {share_id}")
        self.attach(share_id)

    def _qgroup(self, share_id: str) -> list[str]:
        done = self.command(
            *("btrfs", "qgroup", "show", "--raw", "--sync", "-re", "-f", self.held_in(share_id)),
            doing=f"read the quota of share {share_id}",
        )
        return done.stdout.splitlines()[-1].split()

    def _snapshot(self, snapshot_id: str) -> str:
        return f"{self.data}/snapshots/{snapshot_id}"
