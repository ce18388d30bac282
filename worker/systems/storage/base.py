"""Storage of share data on one machine: the interface and shared parts of both kinds.

A share is a file system (or a subvolume) of its own, mounted at ``<root>/mounts/<share id>``;
clients get its directory ``data``. That directory exists only while the share is mounted, so
after a reboot an export cannot show the empty mount point of the host's own disk by mistake.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Final

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from worker.errors import ErrorCode, Fatal, ObjectKind, Retryable, StepError
from worker.systems.shell.base import Completed, Shell, locked

GIB: Final = 1 << 30
MOUNT_OPTIONS: Final = "nosuid,nodev"
"""Tenants' root users write these file systems; the host must not obey what they put there."""

_UNMOUNT: Final = """
while mountpoint -q "$1"; do umount "$1"; done
[ ! -d "$1" ] || rmdir "$1"
"""


_FOUND: Final = r"""
for kind in shares snapshots; do
    [ ! -d "$1/$kind" ] || find "$1/$kind" -mindepth 1 -maxdepth 1 -printf "$kind %f\n"
done
[ ! -d "$2/mounts" ] || find "$2/mounts" -mindepth 1 -maxdepth 1 -printf 'mounts %f\n'
losetup --list --noheadings --output BACK-FILE | while read -r file; do
    case $file in "$2"/shares/*/image*) rest=${file#"$2"/shares/}; echo "loops ${rest%%/*}" ;; esac
done
"""

_DETACH: Final = r"""
losetup --list --noheadings --output NAME,BACK-FILE | while read -r device file; do
    case $file in "$1"*) losetup --detach "$device" ;; esac
done
"""


@dataclass(frozen=True, slots=True)
class Capacity:
    """Total and free capacity of the storage, in bytes."""

    total: int
    free: int


class Storage(ABC):
    """Shares and snapshots on one machine, by their ids; sizes are GiB.

    Every call may be repeated after any crash, also by another worker at the same time. ``open``
    comes first: it brings back what a reboot took away. Raises
    :class:`~worker.errors.Fatal` or :class:`~worker.errors.Retryable` with a sentence, and
    :class:`~worker.errors.NotReady` while a long copy goes on.
    """

    kind: ClassVar[str]

    def __init__(self, shell: Shell, root: str) -> None:
        self.shell = shell
        self.root = root

    def path(self, share_id: str) -> str:
        """Return the directory to export."""
        return f"{self.mount_point(share_id)}/data"

    def mount_point(self, share_id: str) -> str:
        """Return where the share's file system is mounted."""
        return f"{self.root}/mounts/{share_id}"

    @abstractmethod
    def open(self) -> None:
        """Create or reopen the storage; called before every use, so also after a reboot."""

    @abstractmethod
    def create(self, share_id: str, size: int) -> None:
        """Create an empty share and mount it; an existing share keeps its content."""

    @abstractmethod
    def create_from_snapshot(self, share_id: str, snapshot_id: str, size: int) -> None:
        """Create a share with the snapshot's content and its own limit in GiB, and mount it."""

    def restore(self, share_id: str) -> None:
        """Mount a share that was created before; nothing is made where its data is missing."""
        held_in = self.held_in(share_id)
        if self.shell.run(["test", "-e", held_in], check=False).exit_code != 0:
            raise Fatal(
                f"The data of share {share_id} is not at {held_in} any more; bring it back and "
                f"run `sharewright share-server ensure`, or delete the share.",
                object=ObjectKind.SHARE.ref(share_id),
                code=ErrorCode.STORAGE_FAILED,
            )
        self.attach(share_id)

    @abstractmethod
    def held_in(self, share_id: str) -> str:
        """Return a path that exists exactly if the share's data exists."""

    @abstractmethod
    def attach(self, share_id: str) -> None:
        """Mount a share; succeed when it is mounted."""

    @abstractmethod
    def delete(self, share_id: str) -> None:
        """Unmount and delete the share; succeed when it is gone."""

    @abstractmethod
    def snapshot(self, snapshot_id: str, share_id: str) -> None:
        """Create a snapshot of the share's present content."""

    @abstractmethod
    def delete_snapshot(self, snapshot_id: str) -> None:
        """Delete the snapshot; succeed when it is gone."""

    @abstractmethod
    def grow(self, share_id: str, size: int) -> None:
        """Raise the share's limit; the caller has made sure that it is not lowered."""

    @abstractmethod
    def limit(self, share_id: str) -> int:
        """Return the share's actual limit, in bytes."""

    @abstractmethod
    def used(self, share_id: str) -> int:
        """Return how many bytes count against the limit."""

    @abstractmethod
    def capacity(self) -> Capacity:
        """Return the total and free capacity that can really be used, in bytes."""

    @abstractmethod
    def close(self) -> None:
        """Remove everything that ``open`` made; the caller has made sure that it is empty."""

    def contents(self) -> tuple[str, ...]:
        """Return the ids of all shares and snapshots, finished or not."""
        return tuple(
            sorted(thing for kind, thing in self.found() if kind in {"shares", "snapshots"})
        )

    def found(self) -> tuple[tuple[str, str], ...]:
        """Return all that there is: ``shares``, ``snapshots``, ``mounts`` or ``loops``, and an id.

        A mount or loop device bears the id of its share.
        """
        done = self.script(_FOUND, self.data, self.root, doing=f"list {self.data}")
        words = (line.split(" ", 1) for line in done.stdout.splitlines())
        return tuple((kind, thing) for kind, thing in words)

    def detach(self, share_id: str) -> None:
        """Detach loop devices of a share's image that were left when it was unmounted."""
        self.script(_DETACH, f"{self.root}/shares/{share_id}/", doing=f"detach share {share_id}")

    @property
    def data(self) -> str:
        """Return the directory that holds ``shares`` and ``snapshots``."""
        return self.root

    def unmount(self, share_id: str, *, lock: str = "") -> None:
        """Unmount a share; a file server lets go of it some milliseconds after its export."""
        point = self.mount_point(share_id)
        for attempt in Retrying(
            retry=retry_if_exception_type(Retryable),
            wait=wait_fixed(0.05),
            stop=stop_after_delay(5),
            reraise=True,
        ):
            with attempt:
                self.script(_UNMOUNT, point, doing=f"unmount share {share_id}", lock=lock)

    def command(self, *argv: str, doing: str, timeout: float = 30.0) -> Completed:
        """Run one command; ``doing`` completes the sentence "Could not ..."."""
        return checked(self.shell.run(argv, timeout=timeout, check=False), doing)

    def script(
        self, script: str, *arguments: str, doing: str, lock: str = "", timeout: float = 60.0
    ) -> Completed:
        """Run a script under the storage's lock, or under that of one of its objects."""
        done = locked(self.shell, lock or self.root, script, *arguments, timeout=timeout)
        return checked(done, doing)


def checked(done: Completed, doing: str) -> Completed:
    """Return a command that ended well; raise what its output says of another."""
    if done.exit_code == 0:
        return done
    raise _translated(done, doing)


def _translated(done: Completed, doing: str) -> StepError:
    """Turn what a storage command printed (in the C locale) into the right error, once."""
    said = (done.stderr or done.stdout).strip()[-400:] or f"exit code {done.exit_code}"
    if "No space left on device" in said:
        return _failed(f"Could not {doing}: the storage is full; add space or delete shares.")
    if "Disk quota exceeded" in said:
        return _failed(f"Could not {doing}: a quota on the storage is used up; raise it.")
    if "busy" in said:
        return Retryable(f"Could not {doing}: it is in use ({said}).")
    if "not found" in said and "sh:" in said:
        return Fatal(
            f"Could not {doing}: a command is not installed there ({said}).",
            code=ErrorCode.CONFIGURATION,
        )
    return _failed(f"Could not {doing}: {said}")


def _failed(sentence: str) -> Fatal:
    return Fatal(sentence, code=ErrorCode.STORAGE_FAILED)
