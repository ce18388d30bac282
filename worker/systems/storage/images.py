"""Shares as image files, each a file system of its own, where there is no btrfs.

XFS, because it grows while it is in use with CAP_SYS_ADMIN alone; ext4 wants CAP_SYS_RESOURCE for
that (measured: "Permission denied to resize filesystem"), which containers seldom have.
"""

from __future__ import annotations

from typing import ClassVar, Final

from worker.errors import NotReady
from worker.systems.shell.base import locked
from worker.systems.storage.base import GIB, MOUNT_OPTIONS, Capacity, Storage, checked

_COPYING: Final = 69
_LOOK_AGAIN: Final = 5.0
"""Seconds until a copy that goes on is looked at again."""

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

# What one copy is made by: a process of its own, which no step waits for. Its lock says that it
# lives, its file `pid` whom to kill, `frozen` what to thaw should it be killed, `failed` why it
# gave up. A copy that becomes a share needs a UUID of its own (ganesha knows file systems by it),
# which XFS changes only once its log is clean: hence the mount, in a mount namespace that goes
# with the process.
_COPY: Final = """
dir=$1 from=$2/image point=$3
exec 9>"$dir/copy"
flock --nonblock 9 || exit 0
echo $$ >"$dir/pid"
thaw() {
    [ -e "$dir/frozen" ] || return 0
    fsfreeze --unfreeze "$(cat "$dir/frozen")" 2>/dev/null || :
    rm -f "$dir/frozen"
}
end() {
    code=$?
    thaw
    rm -f "$dir/image.new" "$dir/pid"
    case $code in 0|143) rm -f "$dir/errors" ;; *) mv "$dir/errors" "$dir/failed" ;; esac
}
trap 'exit 143' TERM
trap end EXIT
thaw
if [ -n "$point" ]; then
    echo "$point" >"$dir/frozen"
    fsfreeze --freeze "$point"
fi
cp --reflink=auto --sparse=always "$from" "$dir/image.new"
thaw
if [ -z "$point" ]; then
    mkdir -p "$dir/point"
    unshare --mount sh -euc 'mount -t xfs -o loop,nouuid "$1" "$2"; umount "$2"' \
        sh "$dir/image.new" "$dir/point"
    xfs_admin -U generate "$dir/image.new" >/dev/null
fi
sync "$dir/image.new"
mv "$dir/image.new" "$dir/image"
sync "$dir"
"""

# Starts the copy unless it runs, and waits a moment for it: most take no longer.
_COPIED: Final = """
dir=$1 copy=$2
shift 2
failed() { cat "$dir/failed" >&2; rm -f "$dir/failed"; exit 1; }
[ ! -e "$dir/image" ] || exit 0
[ ! -e "$dir/failed" ] || failed
exec 9>"$dir/copy"
if flock --nonblock 9; then
    exec 9>&-
    rm -f "$dir/pid"
    setsid --fork sh -euc "$copy" sh "$dir" "$@" </dev/null >/dev/null 2>"$dir/errors"
fi
for _ in $(seq 100); do
    [ ! -e "$dir/image" ] || exit 0
    [ ! -e "$dir/failed" ] || failed
    sleep 0.02
done
exit 69
"""

_REMOVE: Final = """
dir=$1
exec 9>"$dir/copy"
for _ in $(seq 500); do
    if flock --nonblock 9; then break; fi
    [ ! -s "$dir/pid" ] || kill -s KILL -- "-$(cat "$dir/pid")" 2>/dev/null || :
    sleep 0.01
done
flock --nonblock 9 || { echo "its copy is busy" >&2; exit 1; }
[ ! -e "$dir/frozen" ] || fsfreeze --unfreeze "$(cat "$dir/frozen")" 2>/dev/null || :
rm -rf --one-file-system "$dir"
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
    disk below can share blocks between files, else writing clients wait until it is copied. The
    copy goes on outside of the step that began it; whoever asks next finds it.
    """

    kind: ClassVar[str] = "images"

    def open(self) -> None:
        """Implement :meth:`Storage.open`."""
        parts = [f"{self.root}/shares", f"{self.root}/snapshots"]
        self.command("mkdir", "-p", *parts, doing=f"make {self.root}")

    def create(self, share_id: str, size: int) -> None:
        """Implement :meth:`Storage.create`."""
        share = self._directory("shares", share_id)
        self.command("mkdir", "-p", share, doing=f"make {share}")
        self._on(share, _CREATE, str(size * GIB), doing=f"create share {share_id}")
        self.attach(share_id)

    def create_from_snapshot(self, share_id: str, snapshot_id: str, size: int) -> None:
        """Implement :meth:`Storage.create_from_snapshot`."""
        share = self._directory("shares", share_id)
        origin = self._directory("snapshots", snapshot_id)
        self.command("mkdir", "-p", share, doing=f"make {share}")
        self._copy(share, origin, "", doing=f"create share {share_id} from snapshot {snapshot_id}")
        self.attach(share_id)
        self.grow(share_id, size)

    def held_in(self, share_id: str) -> str:
        """Implement :meth:`Storage.held_in`: the image."""
        return f"{self._directory('shares', share_id)}/image"

    def attach(self, share_id: str) -> None:
        """Implement :meth:`Storage.attach`."""
        self._on(
            self._directory("shares", share_id),
            _MOUNT,
            self.mount_point(share_id),
            MOUNT_OPTIONS,
            doing=f"mount share {share_id}",
        )

    def delete(self, share_id: str) -> None:
        """Implement :meth:`Storage.delete`."""
        share = self._directory("shares", share_id)
        self.command("mkdir", "-p", share, doing=f"make {share}")
        self.unmount(share_id, lock=share)
        self._remove("shares", share_id)

    def snapshot(self, snapshot_id: str, share_id: str) -> None:
        """Implement :meth:`Storage.snapshot`."""
        self.attach(share_id)
        snapshot = self._directory("snapshots", snapshot_id)
        self.command("mkdir", "-p", snapshot, doing=f"make {snapshot}")
        self._copy(
            snapshot,
            self._directory("shares", share_id),
            self.mount_point(share_id),
            doing=f"take snapshot {snapshot_id} of share {share_id}",
        )

    def delete_snapshot(self, snapshot_id: str) -> None:
        """Implement :meth:`Storage.delete_snapshot`."""
        self._remove("snapshots", snapshot_id)

    def grow(self, share_id: str, size: int) -> None:
        """Implement :meth:`Storage.grow`, while the share is in use."""
        self._on(
            self._directory("shares", share_id),
            _GROW,
            self.mount_point(share_id),
            str(size * GIB),
            doing=f"extend share {share_id}",
            timeout=600.0,
        )

    def limit(self, share_id: str) -> int:
        """Implement :meth:`Storage.limit`: the file system's size, not that of its image."""
        return self._sizes(share_id)[0]

    def used(self, share_id: str) -> int:
        """Implement :meth:`Storage.used`."""
        return self._sizes(share_id)[1]

    def capacity(self) -> Capacity:
        """Implement :meth:`Storage.capacity`."""
        done = self.command("df", "-B1", "--output=size,avail", self.root, doing="measure the disk")
        total, free = done.stdout.splitlines()[-1].split()
        return Capacity(int(total), int(free))

    def close(self) -> None:
        """Implement :meth:`Storage.close`."""
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
        """Remove a share's or snapshot's directory, and end a copy that is being made there."""
        where = self._directory(kind, identifier)
        self.command("mkdir", "-p", where, doing=f"make {where}")
        self._on(where, _REMOVE, doing=f"remove {where}")

    def _copy(self, directory: str, origin: str, point: str, *, doing: str) -> None:
        """Have an image copied; ``point`` is the mount point to freeze meanwhile, or empty.

        Raises :class:`~worker.errors.NotReady` while it is copied: that may take hours where the
        disk below cannot share blocks, which no step could wait for.
        """
        done = locked(self.shell, directory, _COPIED, directory, _COPY, origin, point)
        if done.exit_code == _COPYING:
            raise NotReady(
                f"Could not {doing} yet: its data is still being copied.", retry_after=_LOOK_AGAIN
            )
        checked(done, doing)

    def _on(
        self, directory: str, script: str, *arguments: str, doing: str, timeout: float = 60.0
    ) -> None:
        """Run under the lock of one object's directory, so that a long copy holds up no other."""
        self.script(script, directory, *arguments, doing=doing, lock=directory, timeout=timeout)

    def _directory(self, kind: str, identifier: str) -> str:
        return f"{self.root}/{kind}/{identifier}"
