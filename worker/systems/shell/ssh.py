"""A shell on another machine, over SSH.

The machine's host key is known before the first connection and nothing else is believed: there is
no trust on first use, no ``known_hosts`` file, no agent and none of the user's own SSH
configuration. One connection a process and machine is kept while it is used; it belongs to the
process that made it, so a fork never shares one.

Nothing is parsed on the far side but one line of quoted words, which ``exec`` replaces by the
command, and ``timeout`` there ends a command that overran, also when nobody listens any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import asyncssh

from worker.errors import ErrorCode, Fatal, Retryable
from worker.systems.shell.base import Completed, checked, decoded, not_installed, overran, shown

_GRACE: Final = 5.0
"""Seconds that a command that overran has between SIGTERM and SIGKILL."""
_ANSWER: Final = 10.0
"""Seconds after that in which the machine must have said how the command ended."""
_IDLE: Final = 60.0
"""Seconds after which a connection that nobody used is closed."""
_KEEPALIVE: Final = 10.0
"""Seconds between questions whether the machine is there; it is gone after three."""
_NOT_FOUND: Final = 127
_NO_FILE: Final = 66
_OVERRAN: Final = frozenset({124, 137, -9})
"""How ``timeout`` ends when it ended the command: by SIGTERM, or with it by SIGKILL."""

_HOST_KEYS: Final = ("ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512", "rsa-sha2-256")
"""What machines may prove their identity by. Ours have the first; a machine without it is asked
for another only so that its key can be seen to be a wrong one."""

_ENVIRONMENT: Final = (
    *("env", "-i", "--chdir=/", "LC_ALL=C", "HOME=/root"),
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
)

# A connection that breaks ends the input early, hence the count of bytes; then nobody reads what
# the script says, and that must not end it before its clean-up.
_WRITE: Final = """
target=$1 mode=$2 size=$3
directory=$(dirname "$target")
mkdir -p "$directory"
half=$(mktemp "$directory/.sharewright.XXXXXXXX")
trap '' PIPE
trap 'exit 143' TERM
trap 'rm -f "$half"' EXIT
cat >"$half"
[ "$(stat -c %s "$half")" -eq "$size" ] || { echo "the content did not arrive whole" >&2; exit 1; }
chmod "$mode" "$half"
sync "$half"
mv -fT "$half" "$target"
sync "$directory"
"""

_READ: Final = """
cat -- "$1" || { [ -e "$1" ] && exit 1; exit 66; }
"""


class LoginRefused(Fatal):
    """The machine does not take our key; it says the same for a while when it boots."""


@dataclass(frozen=True, slots=True)
class SshShell:
    """Implements :class:`~worker.systems.shell.base.Shell` on a machine that runs sshd.

    ``name`` is what messages call the machine. ``host_key`` is its public host key, as
    ``ssh-ed25519 AAAA...``. A user other than root runs every command by ``sudo -n``.

    Raises :class:`~worker.errors.Fatal` when the machine proves another host key than that,
    :class:`LoginRefused` when it does not let us in, and :class:`~worker.errors.Retryable` when
    it is not reached or the connection breaks: the command may then have been done or not.
    """

    name: str
    host: str
    port: int
    user: str
    host_key: str
    private_key_file: Path
    connect_timeout: float = 15.0
    # Shells that differ in this alone share a connection.
    failure: ErrorCode = field(default=ErrorCode.STORAGE_FAILED, compare=False)

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: str | None = None,
        timeout: float = 30.0,
        check: bool = True,
    ) -> Completed:
        """Implement :meth:`Shell.run`."""
        ended = self._wait(self._line(argv, timeout), argv, stdin, timeout)
        if ended.status in _OVERRAN and ended.seconds >= timeout:
            raise overran(argv, timeout, self.name)
        if ended.status == _NOT_FOUND and not self._installed(argv[0]):
            raise not_installed(argv[0], self.name)
        done = Completed(tuple(argv), ended.status, decoded(ended.out), decoded(ended.err))
        return checked(done, self.name, self.failure) if check else done

    def write_file(self, path: str, content: str, *, mode: int = 0o644) -> None:
        """Implement :meth:`Shell.write_file`; makes missing directories."""
        size = str(len(content.encode()))
        done = self._script(_WRITE, path, f"{mode:o}", size, stdin=content)
        if done.exit_code != 0:
            raise self._file_error("write", path, done)

    def read_file(self, path: str) -> str | None:
        """Implement :meth:`Shell.read_file`."""
        done = self._script(_READ, path)
        if done.exit_code == _NO_FILE:
            return None
        if done.exit_code != 0:
            raise self._file_error("read", path, done)
        return done.stdout

    def remove_file(self, path: str) -> None:
        """Implement :meth:`Shell.remove_file`."""
        done = self.run(["rm", "-f", "--", path], check=False)
        if done.exit_code != 0:
            raise self._file_error("remove", path, done)

    def _script(self, script: str, *arguments: str, stdin: str | None = None) -> Completed:
        return self.run(["sh", "-euc", script, "sharewright", *arguments], stdin=stdin, check=False)

    def _file_error(self, verb: str, path: str, done: Completed) -> Fatal:
        said = done.stderr.strip()[-300:] or f"exit code {done.exit_code}"
        return Fatal(f"Cannot {verb} {path} on {self.name}: {said}; check it.", code=self.failure)

    def _line(self, argv: Sequence[str], timeout: float) -> str:
        words = ["exec", *(["sudo", "-n", "--"] if self.user != "root" else []), *_ENVIRONMENT]
        words += ["timeout", f"--kill-after={_GRACE}", str(timeout), *argv]
        if any("\0" in word for word in words):
            raise ValueError("embedded null byte")
        return shlex.join(words)

    def _installed(self, command: str) -> bool:
        argv = ["sh", "-c", 'command -v "$1"', "sh", command]
        return self._wait(self._line(argv, _ANSWER), argv, None, _ANSWER).status == 0

    def _wait(self, line: str, argv: Sequence[str], stdin: str | None, timeout: float) -> _Ended:
        """Have this process's thread for SSH do it, and wait for that."""
        network = _network(os.getpid())
        work = network.run(self, line, None if stdin is None else stdin.encode(), timeout)
        try:
            return asyncio.run_coroutine_threadsafe(work, network.loop).result()
        except TimeoutError:
            raise overran(argv, timeout, self.name) from None
        except (asyncssh.Error, OSError) as error:
            raise Retryable(
                f"The connection to {self.name} broke during `{shown(argv)}`: {error}"
            ) from error


def private_key(file: Path) -> asyncssh.SSHKey:
    """Read an unencrypted private key.

    Raises :class:`~worker.errors.Fatal` with the file's name, and nothing of what is in it.
    """
    try:
        return asyncssh.read_private_key(file)
    except OSError as error:
        reason = str(error.strerror)
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError):
        reason = "it is not a private key without a passphrase"
    raise Fatal(
        f"The SSH private key {file} cannot be read: {reason}; correct the backend's "
        f"ssh_private_key_file.",
        code=ErrorCode.CONFIGURATION,
    )


@dataclass(frozen=True, slots=True)
class _Ended:
    """How a command ended: a negative status is a signal's number."""

    status: int
    out: bytes
    err: bytes
    seconds: float


@dataclass(slots=True)
class _Link:
    """A connection that is being made or kept, and how many commands are on it."""

    opening: asyncio.Task[asyncssh.SSHClientConnection]
    users: int = 0
    idle: asyncio.TimerHandle | None = None
    broken: bool = False

    def usable(self) -> bool:
        return not self.broken and (not self.opening.done() or self.open() is not None)

    def open(self) -> asyncssh.SSHClientConnection | None:
        if self.opening.cancelled() or self.opening.exception() is not None:
            return None
        connection = self.opening.result()
        return None if connection.is_closed() else connection


class _Network:
    """The connections of one process, all worked on by one thread of its own."""

    def __init__(self) -> None:
        # asyncssh logs every command at INFO.
        asyncssh.set_log_level("WARNING")
        self.loop = asyncio.new_event_loop()
        self._links: dict[SshShell, _Link] = {}
        threading.Thread(target=self.loop.run_forever, name="ssh", daemon=True).start()

    async def run(self, shell: SshShell, line: str, stdin: bytes | None, limit: float) -> _Ended:
        """Run one line on the machine, over a connection that is there or a new one."""
        try:
            return await self._run(shell, line, stdin, limit)
        except asyncssh.ChannelOpenError as error:
            if error.code != asyncssh.OPEN_CONNECT_FAILED:
                raise
        # The connection was gone already, so the line was not sent.
        return await self._run(shell, line, stdin, limit)

    async def _run(self, shell: SshShell, line: str, stdin: bytes | None, limit: float) -> _Ended:
        async with self._connection(shell) as connection:
            begun = self.loop.time()
            try:
                async with asyncio.timeout(limit + _GRACE + _ANSWER):
                    done = await connection.run(
                        line,
                        encoding=None,
                        **({"input": stdin} if stdin else {"stdin": asyncssh.DEVNULL}),
                    )
            except TimeoutError:
                connection.abort()
                raise
        if done.returncode is None:
            raise asyncssh.ConnectionLost("it was closed before the command had ended")
        out, err = done.stdout or b"", done.stderr or b""
        assert isinstance(out, bytes)
        assert isinstance(err, bytes)
        return _Ended(done.returncode, out, err, self.loop.time() - begun)

    @contextlib.asynccontextmanager
    async def _connection(self, shell: SshShell) -> AsyncIterator[asyncssh.SSHClientConnection]:
        link = self._links.get(shell)
        if link is None or not link.usable():
            link = self._links[shell] = _Link(asyncio.create_task(_connect(shell)))
        if link.idle is not None:
            link.idle.cancel()
        link.users += 1
        try:
            yield await asyncio.shield(link.opening)
        except asyncssh.Error:
            link.broken = True
            raise
        finally:
            link.users -= 1
            if link.users == 0:
                link.idle = self.loop.call_later(_IDLE, self._forget, shell, link)

    def _forget(self, shell: SshShell, link: _Link) -> None:
        if (connection := link.open()) is not None:
            connection.close()
        if self._links.get(shell) is link:
            del self._links[shell]


_making = threading.Lock()
_networks: dict[int, _Network] = {}


def _network(process: int) -> _Network:
    """Return the process's own; those of the processes that it was forked from stay untouched."""
    with _making:
        if process not in _networks:
            _networks[process] = _Network()
        return _networks[process]


async def _connect(shell: SshShell) -> asyncssh.SSHClientConnection:
    """Connect to the machine that has the host key, or say why not."""
    where = f"{shell.name} at {shell.host} port {shell.port}"
    key = private_key(shell.private_key_file)
    pinned = asyncssh.import_public_key(shell.host_key)
    try:
        async with asyncio.timeout(shell.connect_timeout):
            return await asyncssh.connect(
                shell.host,
                shell.port,
                username=shell.user,
                client_keys=[key],
                known_hosts=([pinned], [], []),
                server_host_key_algs=_HOST_KEYS,
                preferred_auth="publickey",
                agent_path=None,
                config=None,
                keepalive_interval=_KEEPALIVE,
            )
    except (asyncssh.HostKeyNotVerifiable, asyncssh.KeyExchangeFailed) as error:
        raise Fatal(
            f"{where} does not have the SSH host key {pinned.get_fingerprint()} that it was built "
            f"with, so nothing was sent to it. If another machine took its address, remove that "
            f"one; if the server was reinstalled, delete it with its shares.",
            code=ErrorCode.COMPUTE_FAILED,
        ) from error
    except asyncssh.PermissionDenied as error:
        raise LoginRefused(
            f"{where} does not let {shell.user} in with the key in {shell.private_key_file}; "
            f"correct the backend's ssh_user or ssh_private_key_file.",
            code=ErrorCode.CONFIGURATION,
        ) from error
    except TimeoutError as error:
        raise Retryable(
            f"{where} did not answer within {shell.connect_timeout:.0f} s.", code=ErrorCode.TIMEOUT
        ) from error
    except (asyncssh.Error, OSError) as error:
        raise Retryable(f"{where} is not reached: {error}") from error
