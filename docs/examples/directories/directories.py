"""A share driver in one file: a share is a directory, its access rules are a file beside it.

Some file server of yours exports ``root`` and enforces the rule files. That keeps the example
short; the rules of the interface are all kept. Sizes are not enforced.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from worker.drivers.base import ShareDriver
from worker.errors import ErrorCode, Fatal, Retryable
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
from worker.plugin import BackendContext, Options
from worker.systems.shell.base import ShellFor

GIB = 1 << 30


class DirectoryOptions(Options):
    """What stands in ``[backends.<name>.driver]``."""

    root: Path = Field(description="The directory that the file server exports.")
    server: str = Field(description="The file server's name or address, as clients mount it.")


class DirectoryShareDriver(ShareDriver):
    """Shares as directories of this host."""

    OptionsModel: ClassVar[type[Options]] = DirectoryOptions
    options: DirectoryOptions
    modes: ClassVar[frozenset[DriverMode]] = frozenset({DriverMode.SINGLE_SVM})
    host_bound: ClassVar[bool] = True

    def __init__(self, backend: BackendContext, options: Options, shell_for: ShellFor) -> None:
        super().__init__(backend, options, shell_for)

    def create_share(
        self, context: RequestContext, share: Share, server: ShareServer | None
    ) -> tuple[ExportLocation, ...]:
        """Make the directory; one that an earlier attempt made is found."""
        del server  # there is none in single_svm
        self._change(context, lambda: self._share(share.id).mkdir(parents=True, exist_ok=True))
        return self._locations(share)

    def create_share_from_snapshot(
        self, context: RequestContext, share: Share, snapshot: Snapshot, server: ShareServer | None
    ) -> tuple[ExportLocation, ...]:
        """Copy the snapshot."""
        del server
        self._copy(context, self._snapshot(snapshot.id), self._share(share.id))
        return self._locations(share)

    def delete_share(
        self, context: RequestContext, share: Share, server: ShareServer | None
    ) -> None:
        """Remove rules, directory and what a dead attempt left; gone is fine."""
        del server
        for each in (self._rules(share.id), _half(self._rules(share.id))):
            self._change(context, partial(each.unlink, missing_ok=True))
        self._remove(context, self._share(share.id))

    def create_snapshot(
        self, context: RequestContext, snapshot: Snapshot, share: Share, server: ShareServer | None
    ) -> None:
        """Copy the share."""
        del server
        self._copy(context, self._share(share.id), self._snapshot(snapshot.id))

    def delete_snapshot(
        self, context: RequestContext, snapshot: Snapshot, share: Share, server: ShareServer | None
    ) -> None:
        """Remove the copy; gone is fine."""
        del share, server
        self._remove(context, self._snapshot(snapshot.id))

    def update_access(
        self,
        context: RequestContext,
        share: Share,
        server: ShareServer | None,
        rules: Sequence[AccessRule],
        generation: int,
    ) -> None:
        """Replace the rule file, unless it is of a newer generation."""
        del server
        path = self._rules(share.id)
        if path.exists() and json.loads(path.read_text())["generation"] > generation:
            return
        document = {
            "generation": generation,
            "rules": [[rule.access_to, rule.access_level] for rule in rules],
        }
        half = _half(path)
        self._change(context, lambda: half.write_text(json.dumps(document)))
        self._change(context, lambda: half.replace(path))

    def storage_pools(self, context: RequestContext) -> tuple[StoragePool, ...]:
        """One pool: the file system below ``root``."""
        del context  # looking changes nothing, so nothing is guarded
        try:
            disk = shutil.disk_usage(self.options.root)
        except OSError as error:
            raise _translated(error, self.options.root) from error
        return (StoragePool("directories", disk.total // GIB, disk.free // GIB),)

    def _locations(self, share: Share) -> tuple[ExportLocation, ...]:
        return (ExportLocation(f"{self.options.server}:{self._share(share.id)}"),)

    # Outside names are made of the row's own id, which is never used again.

    def _share(self, share_id: str) -> Path:
        return self.options.root / "shares" / share_id

    def _snapshot(self, snapshot_id: str) -> Path:
        return self.options.root / "snapshots" / snapshot_id

    def _rules(self, share_id: str) -> Path:
        return self.options.root / "shares" / f"{share_id}.rules"

    def _copy(self, context: RequestContext, source: Path, target: Path) -> None:
        """Copy under another name first: a copy that was cut off must not pass for a whole one."""
        if target.exists():
            return
        half = _half(target)
        if half.exists():
            self._change(context, lambda: shutil.rmtree(half))
        self._change(context, lambda: shutil.copytree(source, half, symlinks=True))
        self._change(context, lambda: half.rename(target))

    def _remove(self, context: RequestContext, path: Path) -> None:
        for each in (path, _half(path)):
            if each.exists():
                self._change(context, partial(shutil.rmtree, each))

    def _change(self, context: RequestContext, call: Callable[[], object]) -> None:
        """The one place that changes anything: guard first, then act, then translate errors."""
        context.guard()
        try:
            call()
        except OSError as error:
            raise _translated(error, self.options.root) from error


def _half(path: Path) -> Path:
    return path.with_name(f"{path.name}.half")


def _translated(error: OSError, root: Path) -> Fatal | Retryable:
    """Whether it is worth another attempt is decided here, once, by the error's number."""
    sentence = f"The directory {error.filename or root} could not be used: {error.strerror}."
    if error.errno in _PASSING:
        return Retryable(sentence)
    return Fatal(
        f"{sentence} See that {root} exists and belongs to the worker.",
        code=ErrorCode.STORAGE_FAILED,
    )


_PASSING = frozenset({errno.EINTR, errno.EAGAIN, errno.ESTALE, errno.EIO})
