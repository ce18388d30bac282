"""Shares as image files, each a file system of its own, where there is no btrfs."""

from __future__ import annotations

from typing import ClassVar, Final

from worker.systems.shell import Shell
from worker.systems.storage import GIB, MOUNT_OPTIONS, Capacity, Storage

_COPY_LIMIT: Final = 3600.0
"""Seconds that copying an image may take where its file system cannot share blocks (reflink)."""

_CREATE: Final = """
image=$1/image bytes=$2 filesystem=$3
[ ! -e "$image" ] || exit 0
truncate -s "$bytes" "$image.new"
case $filesystem in
    ext4) mkfs.ext4 -q -F -m 0 "$image.new" ;;
    xfs) mkfs.xfs -q -f "$image.new" ;;
esac
sync "$image.new"
mv "$image.new" "$image"
sync "$1"
"""

# minixdf: the size that statfs shows is then the file system's own, without its tables left out.
# nouuid: a share from a snapshot has its origin's UUID.
_MOUNT: Final = """
image=$1/image point=$2 options=$3 filesystem=$4
case $filesystem in ext4) options=$options,minixdf ;; xfs) options=$options,nouuid ;; esac
mkdir -p "$point"
mountpoint -q "$point" || mount -t "$filesystem" -o "loop,$options" "$image" "$point"
[ -d "$point/data" ] || mkdir -m 0777 "$point/data"
"""

_COPY: Final = """
to=$1/image from=$2/image frozen=${3:-}
[ -z "$frozen" ] || fsfreeze --unfreeze "$frozen" 2>/dev/null || :
[ ! -e "$to" ] || exit 0
trap 'exit 143' TERM
trap '[ -z "$frozen" ] || fsfreeze --unfreeze "$frozen"; rm -f "$to.new"' EXIT
[ -z "$frozen" ] || fsfreeze --freeze "$frozen"
cp --reflink=auto --sparse=always "$from" "$to.new"
sync "$to.new"
mv "$to.new" "$to"
sync "$1"
"""

_GROW: Final = """
image=$1/image point=$2 bytes=$3 filesystem=$4
[ "$(stat -c %s "$image")" -ge "$bytes" ] || truncate -s "$bytes" "$image"
device=$(findmnt -nvro SOURCE --mountpoint "$point")
losetup --set-capacity "$device"
case $filesystem in
    ext4) resize2fs "$device" >/dev/null 2>&1 ;;
    xfs) xfs_growfs "$point" >/dev/null ;;
esac
sync -f "$point"
"""

_SIZES: Final = """
set -- $(stat -f -c '%S %b %f' "$1") "$1" "$2"
echo "$1 $3 $2"
case $5 in
    ext4) echo "$1 $2" ;;
    xfs) xfs_info "$4" | sed -n 's/^data.*bsize=\\([0-9]*\\) *blocks=\\([0-9]*\\).*/\\1 \\2/p' ;;
esac
"""


class ImageStorage(Storage):
    """One sparse ext4 or XFS image a share, loop-mounted; the image's size is the limit.

    A snapshot is a copy of the image, taken while the file system is frozen: at once where the
    disk below can share blocks between files, else writing clients wait until it is copied.
    """

    kind: ClassVar[str] = "images"

    def __init__(self, shell: Shell, root: str, *, filesystem: str) -> None:
        super().__init__(shell, root)
        self.filesystem = filesystem

    def open(self) -> None:
        """As :meth:`Storage.open`."""
        parts = [f"{self.root}/shares", f"{self.root}/snapshots"]
        self.command("mkdir", "-p", *parts, doing=f"make {self.root}")

    def create(self, share_id: str, size: int) -> None:
        """As :meth:`Storage.create`."""
        share = self._directory("shares", share_id)
        self.command("mkdir", "-p", share, doing=f"make {share}")
        self._on(share, _CREATE, str(size * GIB), self.filesystem, doing=f"create share {share_id}")
        self._mount(share_id)

    def create_from_snapshot(self, share_id: str, snapshot_id: str, size: int) -> None:
        """As :meth:`Storage.create_from_snapshot`."""
        share = self._directory("shares", share_id)
        origin = self._directory("snapshots", snapshot_id)
        self.command("mkdir", "-p", share, doing=f"make {share}")
        doing = f"create share {share_id} from snapshot {snapshot_id}"
        self._on(share, _COPY, origin, doing=doing, timeout=_COPY_LIMIT)
        self._mount(share_id)
        self.grow(share_id, size)

    def delete(self, share_id: str) -> None:
        """As :meth:`Storage.delete`."""
        share = self._directory("shares", share_id)
        self.command("mkdir", "-p", share, doing=f"make {share}")
        self.unmount(share_id, lock=share)
        self._remove("shares", share_id)

    def snapshot(self, snapshot_id: str, share_id: str) -> None:
        """As :meth:`Storage.snapshot`."""
        self._mount(share_id)
        snapshot = self._directory("snapshots", snapshot_id)
        self.command("mkdir", "-p", snapshot, doing=f"make {snapshot}")
        self._on(
            snapshot,
            _COPY,
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
            self.filesystem,
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

    def _mount(self, share_id: str) -> None:
        self._on(
            self._directory("shares", share_id),
            _MOUNT,
            self.mount_point(share_id),
            MOUNT_OPTIONS,
            self.filesystem,
            doing=f"mount share {share_id}",
        )

    def _sizes(self, share_id: str) -> tuple[int, int]:
        done = self.script(
            _SIZES,
            self.mount_point(share_id),
            self.filesystem,
            doing=f"measure share {share_id}",
        )
        (block, free, blocks), (unit, units) = (
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
