"""Shells, which run commands on the machine of a share server.

The storage and export code does not know whether its share server is this host, a network
namespace on it, or a virtual machine behind SSH: it is handed a :class:`Shell`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from worker.errors import ErrorCode, Fatal, Retryable
from worker.model import ShareServer

LOCK_TAKEN: Final = 75
"""What :func:`locked` has ``flock`` exit with (EX_TEMPFAIL); scripts do not use it."""


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ended: its exact exit code and what it printed (decoded as UTF-8)."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str


class Shell(Protocol):
    """Runs commands and keeps small files on one machine."""

    @property
    def failure(self) -> ErrorCode:
        """The code of an error about a command or file; it says whose work the shell does."""

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: str | None = None,
        timeout: float = 30.0,
        check: bool = True,
    ) -> Completed:
        """Run a command (never through a shell's parser) and wait for it.

        Raises :class:`~worker.errors.Fatal` when ``check`` and the exit code is not 0,
        :class:`~worker.errors.Retryable` when it did not end within ``timeout`` seconds or the
        machine was not reached.
        """

    def write_file(self, path: str, content: str, *, mode: int = 0o644) -> None:
        """Write a file so that readers see the old content or the new, never half of it."""

    def read_file(self, path: str) -> str | None:
        """Return a file's content, or None when there is no such file."""

    def remove_file(self, path: str) -> None:
        """Remove a file; succeed when there is none."""


ShellFor = Callable[[ShareServer | None], Shell]
"""Returns the shell of a share server; of the predefined server when there is none."""


@dataclass(frozen=True, slots=True)
class Guarded:
    """A shell that asks ``guard`` before everything it does, so no changing call can forget to.

    ``guard`` raises :class:`~worker.errors.LeaseLost` once this worker may not act any more.
    """

    shell: Shell
    guard: Callable[[], None]

    @property
    def failure(self) -> ErrorCode:
        """Implement :attr:`Shell.failure`."""
        return self.shell.failure

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: str | None = None,
        timeout: float = 30.0,
        check: bool = True,
    ) -> Completed:
        """Implement :meth:`Shell.run`."""
        self.guard()
        return self.shell.run(argv, stdin=stdin, timeout=timeout, check=check)

    def write_file(self, path: str, content: str, *, mode: int = 0o644) -> None:
        """Implement :meth:`Shell.write_file`."""
        self.guard()
        self.shell.write_file(path, content, mode=mode)

    def read_file(self, path: str) -> str | None:
        """Implement :meth:`Shell.read_file`."""
        return self.shell.read_file(path)

    def remove_file(self, path: str) -> None:
        """Implement :meth:`Shell.remove_file`."""
        self.guard()
        self.shell.remove_file(path)


def decoded(output: bytes) -> str:
    """Return a command's output as text; invalid UTF-8 is replaced."""
    return output.decode("utf-8", "replace")


def shown(argv: Sequence[str]) -> str:
    """Return the beginning of a command, on one line, for a message."""
    return " ".join(" ".join(argv).split())[:80]


def checked(done: Completed, where: str, failure: ErrorCode) -> Completed:
    """Return a command that ended well; raise :class:`~worker.errors.Fatal` for another."""
    if done.exit_code == 0:
        return done
    said = (done.stderr or done.stdout).strip()[-500:] or "it printed nothing"
    raise Fatal(
        f"`{shown(done.argv)}` ended with exit code {done.exit_code} on {where}: {said}",
        code=failure,
    )


def overran(argv: Sequence[str], timeout: float, where: str) -> Retryable:
    """Return the error of a command that did not end in time."""
    return Retryable(
        f"`{shown(argv)}` did not end within {timeout:g} s on {where}.",
        code=ErrorCode.TIMEOUT,
    )


def not_installed(command: str, where: str) -> Fatal:
    """Return the error of a command that is not installed."""
    return Fatal(
        f"The command {command!r} is not installed on {where}; install the packages that "
        f"docs/how-to/install.md lists.",
        code=ErrorCode.CONFIGURATION,
    )


def locked(
    shell: Shell, lock: str, script: str, *arguments: str, timeout: float = 30.0
) -> Completed:
    """Run a fixed ``sh`` script while holding the lock on ``lock`` (a file or a directory).

    For the few places where several commands must not interleave with another worker's. The
    script never contains data: that comes as ``$1`` and on. It goes on to its end when the worker
    is killed, so what it does is all or nothing to other workers. The lock is closed for the
    script's children: a daemon that it starts does not hold it.

    The exit code is the script's own and not checked. Raises
    :class:`~worker.errors.Retryable` when the lock stays taken for half of ``timeout`` seconds.
    """
    argv = ["flock", "--close", "--timeout", str(timeout / 2), "--conflict-exit-code", "75", lock]
    done = shell.run(
        [*argv, "sh", "-euc", script, "sharewright", *arguments], timeout=timeout, check=False
    )
    if done.exit_code == LOCK_TAKEN:
        raise Retryable(f"Another worker has been holding {lock} for {timeout / 2:.0f} s.")
    return done
