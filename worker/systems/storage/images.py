"""Shares as image files, each a file system of its own, where there is no btrfs.

XFS, because it grows while it is in use with CAP_SYS_ADMIN alone; ext4 wants CAP_SYS_RESOURCE for
that (measured: "Permission denied to resize filesystem"), which containers seldom have.
"""

from __future__ import annotations

from typing import ClassVar, Final

from worker.systems.storage.base import GIB, MOUNT_OPTIONS, Capacity, Storage

_COPY_LIMIT: Final = 3600.0
"""Seconds that copying an image may take where its file system cannot share blocks (reflink)."""

_CREATE: Final = """
image=$1/image bytes=$2
[ ! -e "$image" ] || exit 0
truncate -s "$bytes" "$image.new"
mkfs.xfs -q -f "$image.new"
sync "$image.new"
mv "$image.new" "$image"
sync "$1"
"""

_MOUNT: Final = """
image=$1/image point=$2 options=$3
mkdir -p "$point"
mountpoint -q "$point" || mount -t xfs -o "loop,$options" "$image" "$point"
[ -d "$point/data" ] || mkdir -m 0777 "$point/data"
"""

# Unfrozen whatever happens in between, and first of all in case an earlier attempt was killed.
_SNAPSHOT: Final = """
to=$1/image from=$2/image point=$3
fsfreeze --unfreeze "$point" 2>/dev/null || :
[ ! -e "$to" ] || exit 0
trap 'exit 143' TERM
trap 'fsfreeze --unfreeze "$point"; rm -f "$to.new"' EXIT
fsfreeze --freeze "$point"
cp --reflink=auto --sparse=always "$from" "$to.new"
sync "$to.new"
mv "$to.new" "$to"
sync "$1"
"""

# A copy needs a UUID of its own (ganesha knows file systems by it), which XFS changes only once
# its log is clean: hence the mount, in a mount namespace that goes with the process.
_CLONE: Final = """
to=$1/image from=$2/image
[ ! -e "$to" ] || exit 0
trap 'exit 143' TERM
trap 'rm -f "$to.new"' EXIT
mkdir -p "$1/point"
cp --reflink=auto --sparse=always "$from" "$to.new"
unshare --mount sh -euc 'mount -t xfs -o loop,nouuid "$1" "$2"; umount "$2"' sh "$to.new" "$1/point"
xfs_admin -U generate "$to.new" >/dev/null
sync "$to.new"
mv "$to.new" "$to"
sync "$1"
"""

_GROW: Final = """
image=$1/image point=$2 bytes=$3
[ "$(stat -c %s "$image")" -ge "$bytes" ] || truncate -s "$bytes" "$image"
losetup --set-capacity "$(findmnt -nvro SOURCE --mountpoint "$point")"
xfs_growfs "$point" >/dev/null
sync -f "$point"
"""

_SIZES: Final = """
xfs_info "$1" | sed -n 's/^data.*bsize=\\([0-9]*\\) *blocks=\\([0-9]*\\).*/\\1 \\2/p'
stat -f -c '%S %b %f' "$1"
"""


class ImageStorage(Storage):
    """One sparse XFS image a share, loop-mounted; the image's size is the limit.

    A snapshot is a copy of the image, taken while the file system is frozen: at once where the
    disk below can share blocks between files, else writing clients wait until it is copied.
    """

    kind: ClassVar[str] = "images"

    def open(self) -> None:
        """As :meth:`Storage.open`."""
        parts = [f"{self.root}/shares", f"{self.root}/snapshots"]
        self.command("mkdir", "-p", *parts, doing=f"make {self.root}")

    def create(self, share_id: str, size: int) -> None:
        """As :meth:`Storage.create`."""
        share = self._directory("shares", share_id)
        self.command("mkdir", "-p", share, doing=f"make {share}")
        self._on(share, _CREATE, str(size * GIB), doing=f"create share {share_id}")
        self.attach(share_id)

    def create_from_snapshot(self, share_id: str, snapshot_id: str, size: int) -> None:
        """As :meth:`Storage.create_from_snapshot`."""
        share = self._directory("shares", share_id)
        origin = self._directory("snapshots", snapshot_id)
        self.command("mkdir", "-p", share, doing=f"make {share}")
        doing = f"create share {share_id} from snapshot {snapshot_id}"
        self._on(share, _CLONE, origin, doing=doing, timeout=_COPY_LIMIT)
        self.attach(share_id)
        self.grow(share_id, size)

    def held_in(self, share_id: str) -> str:
        """As :meth:`Storage.held_in`: the image."""
        return f"{self._directory('shares', share_id)}/image"

    def attach(self, share_id: str) -> None:
        """As :meth:`Storage.attach`."""
        self._on(
            self._directory("shares", share_id),
            _MOUNT,
            self.mount_point(share_id),
            MOUNT_OPTIONS,
            doing=f"mount share {share_id}",
        )

    def delete(self, share_id: str) -> None:
        """As :meth:`Storage.delete`."""
        share = self._directory("shares", share_id)
        self.command("mkdir", "-p", share, doing=f"make {share}")
        self.unmount(share_id, lock=share)
        self._remove("shares", share_id)

    def snapshot(self, snapshot_id: str, share_id: str) -> None:
        """As :meth:`Storage.snapshot`."""
        self.attach(share_id)
        snapshot = self._directory("snapshots", snapshot_id)
        self.command("mkdir", "-p", snapshot, doing=f"make {snapshot}")
        self._on(
            snapshot,
            _SNAPSHOT,
            self._directory("shares", share_id),
            self.mount_point(share_id),
            doing=f"take snapshot {snapshot_id} of share {share_id}",
            timeout=_COPY_LIMIT,
        )

    def delete_snapshot(self, snapshot_id: str) -> None:
        """As :meth:`Storage.delete_snapshot`."""
        self._remove("snapshots", snapshot_id)

    def grow(self, share_id: str, size: int) -> None:
        """As :meth:`Storage.grow`, while the share is in use."""
        self._on(
            self._directory("shares", share_id),
            _GROW,
            self.mount_point(share_id),
            str(size * GIB),
            doing=f"extend share {share_id}",
            timeout=600.0,
        )

    def limit(self, share_id: str) -> int:
        """As :meth:`Storage.limit`: the file system's size, not that of its image."""
        return self._sizes(share_id)[0]

    def used(self, share_id: str) -> int:
        """As :meth:`Storage.used`."""
        return self._sizes(share_id)[1]

    def capacity(self) -> Capacity:
        """As :meth:`Storage.capacity`."""
        done = self.command("df", "-B1", "--output=size,avail", self.root, doing="measure the disk")
        total, free = done.stdout.splitlines()[-1].split()
        return Capacity(int(total), int(free))

    def close(self) -> None:
        """As :meth:`Storage.close`."""
        self.command("rm", "-rf", "--one-file-system", self.root, doing=f"remove {self.root}")

    def _sizes(self, share_id: str) -> tuple[int, int]:
        done = self.script(
            _SIZES,
            self.mount_point(share_id),
            doing=f"measure share {share_id}",
        )
        (unit, units), (block, blocks, free) = (
            [int(word) for word in line.split()] for line in done.stdout.splitlines()
        )
        return unit * units, (blocks - free) * block

    def _remove(self, kind: str, identifier: str) -> None:
        where = self._directory(kind, identifier)
        self.command("rm", "-rf", "--one-file-system", where, doing=f"remove {where}")

    def _on(
        self, directory: str, script: str, *arguments: str, doing: str, timeout: float = 60.0
    ) -> None:
        """Run under the lock of one object's directory, so that a long copy holds up no other."""
        self.script(script, directory, *arguments, doing=doing, lock=directory, timeout=timeout)

    def _directory(self, kind: str, identifier: str) -> str:
        return f"{self.root}/{kind}/{identifier}"
