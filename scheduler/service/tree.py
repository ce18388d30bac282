"""Processes of one embedded service: how they are made, held together, and found again.

Every member of the tree holds one file of the home open (``members``), inherited over each fork;
commands that a step runs, and the daemons that serve shares, do not. So what an ``up`` that was
killed left behind is known exactly: whoever still has that file open.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from scheduler.exits import EXIT_CONFIGURATION
from worker.errors import ConfigurationError, Conflict

_log = logging.getLogger(__name__)
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_LEFT_ALONE_SECONDS: Final = 3.0
_KILLED_SECONDS: Final = 10.0
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def alone(home: Path) -> Iterator[int]:
    """Be the home's only ``up``; gives the descriptor that every member is to inherit.

    What an earlier one left behind is waited for, then killed. Raises
    :class:`~worker.errors.Conflict` when another ``up`` runs, or something cannot be ended.
    """
    lock = os.open(home / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            # Of this process alone: unlike flock's, no child that outlives it keeps the lock.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.pread(lock, 20, 0).decode().strip()
            raise Conflict(
                f"Another `sharewright up` (process {other}) runs in {home} already; stop it, or "
                f"choose another --home."
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        _end_leftovers(home / "members")
        with (home / "members").open("w") as members:
            yield members.fileno()
    finally:
        os.close(lock)


def _end_leftovers(members: Path) -> None:
    began = time.monotonic()
    killed = False
    while left := holders(members):
        waited = time.monotonic() - began
        if waited > _LEFT_ALONE_SECONDS and not killed:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed = True
        if waited > _LEFT_ALONE_SECONDS + _KILLED_SECONDS:
            raise Conflict(
                f"Processes {', '.join(map(str, left))} of an earlier `sharewright up` cannot be "
                f"ended, not even by SIGKILL; look what they wait for."
            )
        time.sleep(0.05)


def holders(path: Path) -> list[int]:
    """Return the processes that have a file open, apart from this one."""
    try:
        wanted = path.stat()
    except FileNotFoundError:
        return []
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            # It may end, or be another user's.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                if any(_is(descriptor, wanted) for descriptor in (process / "fd").iterdir()):
                    found.append(int(process.name))
    return found


def _is(descriptor: Path, wanted: os.stat_result) -> bool:
    try:
        return os.path.samestat(descriptor.stat(), wanted)
    except FileNotFoundError:
        return False


def _die_with(parent: int, number: signal.Signals) -> None:
    """Have the kernel send a signal to this process when its parent is gone."""
    _libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # it went before it was asked for


def fork(name: str, log: Path, close: Sequence[int], body: Callable[[], int]) -> int:
    """Run ``body`` in a child of its own session that dies with this process; return its pid.

    ``close`` are descriptors that the child must not keep; its exit code is what ``body`` returns.
    """
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        _die_with(parent, signal.SIGKILL)
        _libc.prctl(_PR_SET_NAME, f"sw-{name}"[:15].encode(), 0, 0, 0)
        for descriptor in close:
            os.close(descriptor)
        _redirect(log)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        code = body()
    except ConfigurationError as error:
        _log.error("%s", error.message)
        code = EXIT_CONFIGURATION
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    except BaseException:  # noqa: BLE001 - the supervisor's frames below must never run here
        _log.exception("%s ended by a defect.", name)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _redirect(log: Path) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(nothing)
    os.close(output)


def execute(command: Sequence[str], log: Path, keep: int) -> int:
    """Run a program in a session of its own; it gets SIGTERM when this process is gone."""
    parent = os.getpid()

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _die_with(parent, signal.SIGTERM)

    with log.open("ab") as output:
        # The supervisor has one thread, so code between fork and exec is safe.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=(keep,),
            preexec_fn=prepare,  # noqa: PLW1509 - one thread, see above
        )
    process.returncode = 0  # the supervisor reaps; Popen must not warn or wait
    return process.pid
