"""A shell on this host, optionally inside one of its network namespaces."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from worker.errors import ErrorCode, Fatal, Retryable
from worker.systems.shell.base import Completed, checked, decoded, not_installed, overran

NAMESPACES: Final = Path("/run/netns")
_GRACE: Final = 5.0
"""Seconds that a command that overran has between SIGTERM and SIGKILL."""


@dataclass(frozen=True, slots=True)
class LocalShell:
    """Implements :class:`~worker.systems.shell.base.Shell` with child processes.

    A command gets a session of its own, an environment without the worker's settings, and no
    file descriptor but its own three. A worker that is killed does not take it along.

    Namespaces are entered with ``nsenter --net``: ``ip netns exec`` makes a private mount
    namespace, in which mounts made later are not seen (docs/facts.md).
    """

    namespace: str | None = None
    failure: ErrorCode = ErrorCode.STORAGE_FAILED

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: str | None = None,
        timeout: float = 30.0,
        check: bool = True,
    ) -> Completed:
        """Implement :meth:`Shell.run`."""
        command = (*self._prefix(), *argv)
        environment = {"PATH": _search_path(), "LC_ALL": "C", "HOME": "/root"}
        # nsenter's own failure would look like the command's, hence both checks beforehand.
        if shutil.which(argv[0], path=environment["PATH"]) is None:
            raise not_installed(argv[0], "this host")
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env=environment,
            start_new_session=True,
        ) as process:
            try:
                out, err = process.communicate(None if stdin is None else stdin.encode(), timeout)
            except subprocess.TimeoutExpired:
                _end(process)
                raise overran(argv, timeout, self._where()) from None
            except BaseException:
                _end(process)
                raise
        done = Completed(tuple(argv), process.returncode, decoded(out), decoded(err))
        return checked(done, self._where(), self.failure) if check else done

    def write_file(self, path: str, content: str, *, mode: int = 0o644) -> None:
        """Implement :meth:`Shell.write_file`; makes missing directories."""
        target = Path(path)
        half = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, mode)
                file.write(content.encode())
                file.flush()
                os.fsync(descriptor)
            half.replace(target)
            _sync_directory(target.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                half.unlink()
            raise self._file_error("write", path, error) from error

    def read_file(self, path: str) -> str | None:
        """Implement :meth:`Shell.read_file`."""
        try:
            return Path(path).read_bytes().decode()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._file_error("read", path, error) from error

    def remove_file(self, path: str) -> None:
        """Implement :meth:`Shell.remove_file`."""
        try:
            Path(path).unlink(missing_ok=True)
        except NotADirectoryError:
            return
        except OSError as error:
            raise self._file_error("remove", path, error) from error

    def _prefix(self) -> tuple[str, ...]:
        if self.namespace is None:
            return ()
        handle = NAMESPACES / self.namespace
        if not handle.exists():
            raise Retryable(
                f"The network namespace {self.namespace} does not exist on this host; it is made "
                f"again when its share server is built again."
            )
        return ("nsenter", f"--net={handle}", "--")

    def _file_error(self, verb: str, path: str, error: OSError) -> Fatal:
        advice = "free some space" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "check it"
        return Fatal(
            f"Cannot {verb} {path} on this host: {error.strerror}; {advice}.", code=self.failure
        )

    def _where(self) -> str:
        return f"this host (namespace {self.namespace})" if self.namespace else "this host"


def _search_path() -> str:
    """The worker's PATH and the administrator's directories, which service managers leave out."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command with all that it started; SIGTERM first, so that scripts can put right."""
    for number, republish_after in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
            process.communicate(timeout=republish_after)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
        else:
            return


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
