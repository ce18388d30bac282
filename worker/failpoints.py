"""Named places between every outside effect and every commit, where tests let a process die.

Free when off: :func:`failpoint` is then a function that tests one module variable. Switched on by
the environment::

    SHAREWRIGHT_FAILPOINTS="create_share.after_effect=kill;get_share_server.before=stop"

Every act passes ``before``, ``after_effect``, ``before_commit``, ``after_commit`` and
``after_publish``; acts with several effects have more of their own.

Actions: ``kill`` (SIGKILL to this process, the pool child), ``kill_main`` (SIGKILL to its parent),
``raise`` (a retryable failure), ``fatal`` (a failure for good), ``lost`` (the effect is done and
its reply is lost: as ``raise``), ``hang 4.5`` (do nothing for so many seconds; without a number:
past any lease), ``hold /a/file`` (do nothing while the file exists), ``stop /a/file`` (write the
process id into the file and SIGSTOP; the test continues it).

``SHAREWRIGHT_FAILPOINT_TOKENS`` names a directory: each firing takes one file away whose name
begins with the failpoint's, and without one left nothing happens. So a test says "ten times, in
whichever process comes first", and counts what is left. A file that is not empty says the action
itself, and one in a directory named like a project is for that project's operations alone: with
those, any place can be switched on while everything runs.
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
    """Die here, or worse, if a test wants it."""
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
        time.sleep(HANG_SECONDS)  # until the pool's own end of us arrives
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
