"""Named places between every outside effect and every commit, where tests let a process die.

Free when off: :func:`failpoint` is then a function that tests one module variable. Switched on by
the environment::

    SHAREWRIGHT_FAILPOINTS="create_share.after_effect=kill;get_share_server.before=stop"

Every act passes ``before``, ``after_effect``, ``before_commit``, ``after_commit`` and
``after_publish``; acts with several effects have more of their own.

Actions: ``kill`` (SIGKILL to this process, the pool child), ``kill_main`` (SIGKILL to its parent),
``raise`` (a retryable failure), ``fatal`` (a failure for good), ``lost`` (the effect is done and
its reply is lost: as ``raise``), ``hang`` (sleep past any lease), ``stop`` (SIGSTOP; the test
continues it). ``SHAREWRIGHT_FAILPOINT_TOKENS`` names a directory: each firing takes one file away
whose name begins with the failpoint's, and without one left nothing happens. So a test says "ten
times, in whichever process comes first", and counts what is left.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Final

from worker.errors import ErrorCode, Fatal, Retryable

VARIABLE: Final = "SHAREWRIGHT_FAILPOINTS"
TOKENS_VARIABLE: Final = "SHAREWRIGHT_FAILPOINT_TOKENS"
HANG_SECONDS: Final = 3600.0


def _parse(setting: str) -> dict[str, str]:
    pairs = (item.split("=", 1) for item in setting.split(";") if item.strip())
    return {name.strip(): action.strip() for name, action in pairs}


_armed: dict[str, str] = _parse(os.environ.get(VARIABLE, ""))


def failpoint(name: str) -> None:
    """Die here, or worse, if a test wants it."""
    if _armed and name in _armed and _take_token(name):
        _act(name, _armed[name])


def _take_token(name: str) -> bool:
    directory = os.environ.get(TOKENS_VARIABLE)
    if directory is None:
        return True
    for token in sorted(Path(directory).glob(f"{name}@*")):
        try:
            token.unlink()
        except FileNotFoundError:
            continue  # another process took it first
        return True
    return False


def _act(name: str, action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "kill_main":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(HANG_SECONDS)  # until the pool's own end of us arrives
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "hang":
        time.sleep(HANG_SECONDS)
    elif action in {"raise", "lost"}:
        raise Retryable(f"failpoint {name}", code=ErrorCode.INTERNAL)
    elif action == "fatal":
        raise Fatal(f"failpoint {name}", code=ErrorCode.INTERNAL)
    else:
        raise ValueError(f"failpoint {name}: unknown action {action!r}")
