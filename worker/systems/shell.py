"""How a command reaches the machine that it is meant for.

The storage and export code does not know whether its share server is this host, a network
namespace on it, or a virtual machine behind SSH: it is handed a :class:`Shell`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ended: its exact exit code and what it printed (decoded as UTF-8)."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str


class Shell(Protocol):
    """Runs commands and keeps small files on one machine."""

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
        """Remove a file; its absence is fine."""
