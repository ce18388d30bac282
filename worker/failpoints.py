"""Fail or end the process at named places between external effects and commits, for tests.

Failpoints cost almost nothing when they are off: :func:`failpoint` then tests two module variables.
The environment switches them on::

    SHAREWRIGHT_FAILPOINTS="create_share.after_effect=kill;get_share_server.before=stop"

Every action of a step passes ``before``, ``after_effect``, ``before_commit``, ``after_commit`` and
``after_publish``; an action with several effects has additional ones.

What a failpoint can do:

- ``kill``: send SIGKILL to this process, the pool's child.
- ``kill_main``: send SIGKILL to its parent.
- ``raise``: raise :class:`~worker.errors.Retryable`.
- ``fatal``: raise :class:`~worker.errors.Fatal`.
- ``lost``: the same as ``raise``, for a place where the effect is done and its reply is lost.
- ``hang 4.5``: sleep for that many seconds; without a number, for longer than any lease.
- ``hold /a/file``: sleep while the file exists.
- ``stop /a/file``: write the process id to the file and stop (SIGSTOP); the test continues it.

``SHAREWRIGHT_FAILPOINT_TOKENS`` names a directory of token files, ``<failpoint>@<anything>``. A
failpoint then fires only if it can remove one of its tokens. So a test can ask for ten failures in
whichever processes come first, and count the tokens that are left. A token that is not empty
contains what to do, and replaces the setting above. A token in a subdirectory that is named after a
project applies to that project's operations only. Tokens can be added while processes run.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Final

from worker import logs
from worker.errors import ErrorCode, Fatal, Retryable

VARIABLE: Final = "SHAREWRIGHT_FAILPOINTS"
TOKENS_VARIABLE: Final = "SHAREWRIGHT_FAILPOINT_TOKENS"
HANG_SECONDS: Final = 3600.0
POLL_SECONDS: Final = 0.02


def _parse(setting: str) -> dict[str, str]:
    pairs = (item.split("=", 1) for item in setting.split(";") if item.strip())
    return {name.strip(): action.strip() for name, action in pairs}


_armed: dict[str, str] = _parse(os.environ.get(VARIABLE, ""))
_tokens = TOKENS_VARIABLE in os.environ


def failpoint(name: str) -> None:
    """Do what a test has set for the failpoint ``name``; nothing by default.

    May raise :class:`~worker.errors.Retryable` or :class:`~worker.errors.Fatal`, sleep, or stop or
    kill a process.
    """
    if (_armed or _tokens) and (action := _wanted(name)):
        _act(name, action)


def _wanted(name: str) -> str | None:
    directory = os.environ.get(TOKENS_VARIABLE)
    if directory is None:
        return _armed.get(name)
    folders = [Path(directory), Path(directory, logs.subject("project") or ".")]
    for token in (one for folder in folders for one in sorted(folder.glob(f"{name}@*"))):
        try:
            action = token.read_text() or _armed.get(name)
            if action:
                token.unlink()
                return action
        except FileNotFoundError:
            continue  # another process took it first
    return None


def _act(name: str, wanted: str) -> None:
    action, _, argument = wanted.partition(" ")
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "kill_main":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(HANG_SECONDS)  # until the pool ends this process too
    elif action == "stop":
        if argument:
            Path(argument).write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "hang":
        time.sleep(float(argument or HANG_SECONDS))
    elif action == "hold":
        while Path(argument).exists():
            time.sleep(POLL_SECONDS)
    elif action in {"raise", "lost"}:
        raise Retryable(f"failpoint {name}", code=ErrorCode.INTERNAL)
    elif action == "fatal":
        raise Fatal(f"failpoint {name}", code=ErrorCode.INTERNAL)
    else:
        raise ValueError(f"failpoint {name}: unknown action {action!r}")
