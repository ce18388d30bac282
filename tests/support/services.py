"""Real services for tests, private to them: Redis, PostgreSQL, and processes under test.

Each lives on 127.0.0.1 and in a directory of its own under /tmp, can be stopped, killed and
started again at the same address, and is gone when its ``close`` was called; what a test forgot
goes when the test run ends.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, LiteralString, Self

import psutil
import psycopg
import pytest
import redis
from psycopg import sql

from tests.support.pace import limit

ROOT: Final = Path(__file__).resolve().parents[2]
DATAPATH: Final = {
    *("ganesha.nfsd", "ip", "nsenter", "flock", "pgrep", "btrfs"),
    *("mkfs.btrfs", "mkfs.ext4", "mkfs.xfs"),
}
_POSTGRES_ACCOUNT: Final = "postgres"
_started: list[Process] = []


def missing(sentence: str) -> None:
    """A service that a test needs is not here: skips at home, fails in CI."""
    if os.environ.get("CI", "").lower() in {"1", "true", "yes"}:
        pytest.fail(f"{sentence} CI must have it: `make setup` as root installs it.", pytrace=False)
    pytest.skip(sentence)


def require(program: str) -> str:
    """The path of a program; see :func:`missing` for when there is none."""
    postgres = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", *map(str, postgres)])
    found = shutil.which(program, path=path)
    if found is None:
        missing(f"{program} is not installed.")
        raise AssertionError  # missing() never comes back
    return found


def require_root() -> None:
    """Skips (or fails in CI) when the test run is not root's."""
    if os.geteuid() != 0:
        missing("Only root may do what this test does.")


def require_root_datapath() -> None:
    """Skips (or fails in CI) where no share can really be served over NFS."""
    require_root()
    for program in sorted(DATAPATH):
        require(program)
    if not list(Path("/usr/lib").glob("*/libnfs.so.13")):
        missing("libnfs13 is not installed.")


def wait_until(condition: Callable[[], bool], what: str, times: float = 1.0) -> None:
    """Looks again and again; fails with a sentence after the limit, or several times the limit."""
    deadline = time.monotonic() + times * limit()
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"Not within {times * limit():.0f} s: {what}.")
        time.sleep(0.02)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def alive(pid: int) -> bool:
    """Whether it runs; one that only waits to be reaped does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Process:
    """One command in a session of its own, its output in a file; ended with all it started.

    ``env`` is added to the environment of the tests.
    """

    def __init__(
        self, command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.command = tuple(command)
        self.log = log
        self.env = dict(env or {})
        self._popen: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def start(self, ready: str | Callable[[], bool] | None = None) -> Self:
        """Starts it and waits until it is ready: a text in its output, or a condition."""
        if self.running:
            raise AssertionError(f"{self.command[0]} runs already.")
        self.close()
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as output:
            self._popen = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **self.env},
                start_new_session=True,
            )
        _started.append(self)
        if ready is not None:
            self.await_ready(ready)
        return self

    def await_ready(self, ready: str | Callable[[], bool]) -> None:
        """Waits for one that was started without waiting; it ends where it does not come up."""

        def is_ready() -> bool:
            if not self.running:
                raise AssertionError(f"{self.command} ended at once.")
            return ready in self.output() if isinstance(ready, str) else ready()

        try:
            wait_until(is_ready, f"{self.command} is ready")
        except AssertionError as error:
            self.close()
            raise AssertionError(f"{error}\n{self.output()[-4000:]}") from None

    @property
    def pid(self) -> int:
        assert self._popen is not None, "It was never started."
        return self._popen.pid

    @property
    def running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    @property
    def returncode(self) -> int | None:
        return None if self._popen is None else self._popen.poll()

    def output(self) -> str:
        """What it has written since it was last started."""
        with self.log.open("rb") as written:
            written.seek(self._log_start)
            return written.read().decode(errors="replace")

    def children(self) -> list[int]:
        """The pids of what it started, and what those started, oldest first."""
        try:
            found = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return [child.pid for child in found]

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the main process alone."""
        assert self._popen is not None, "It was never started."
        self._popen.send_signal(number)

    def kill(self) -> None:
        """``kill -9`` of the main process alone, and waits for its end."""
        self.signal(signal.SIGKILL)
        self.wait()

    def terminate(self) -> int:
        """Asks it to stop and gives its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Waits for its end and gives its exit code."""
        assert self._popen is not None, "It was never started."
        return self._popen.wait(limit())

    def close(self) -> None:
        """Kills it and everything left in its session; harmless when all is gone already."""
        if self._popen is None:
            return
        # The session outlives its leader, and a child may have left the process group.
        members = _session_members(self._popen.pid)
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._popen.wait(limit())
        wait_until(lambda: not any(map(alive, members)), f"{self.command[0]} is gone")
        self._popen = None
        _started.remove(self)


def _session_members(session: int) -> list[int]:
    members = []
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(pid) == session:
                members.append(pid)
    return members


@atexit.register
def _end_what_was_forgotten() -> None:
    for process in tuple(_started):
        process.close()


def python(module: str, *arguments: str) -> tuple[str, ...]:
    """The command that runs a module with the tests' own Python."""
    return (sys.executable, "-m", module, *arguments)


class RedisServer:
    """A redis-server on a free port and on a unix socket, at the same address after a restart."""

    def __init__(self, *, appendonly: bool = False) -> None:
        program = require("redis-server")
        self.directory = Path(tempfile.mkdtemp(prefix="sw-redis-"))
        self.socket = self.directory / "redis.sock"
        self.port = free_port()
        self._process = Process(
            (
                *(program, "--bind", "127.0.0.1", "--port", str(self.port)),
                *("--unixsocket", str(self.socket), "--dir", str(self.directory)),
                *("--save", "", "--appendonly", "yes" if appendonly else "no"),
            ),
            log=self.directory / "redis.log",
        )

    def start(self) -> Self:
        self._process.start(self._answers)
        return self

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.ConnectionError:  # not listening yet, or still loading its file
            return False

    def stop(self) -> None:
        """Lets it end by itself: what it keeps on disk is complete."""
        self._process.terminate()

    def kill(self) -> None:
        """``kill -9``: without appendonly it has forgotten everything."""
        self._process.kill()

    def restart(self, *, kill: bool = False) -> None:
        if kill:
            self.kill()
        else:
            self.stop()
        self.start()

    def close(self) -> None:
        self._process.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def pid(self) -> int:
        return self._process.pid

    def url(self, database: int = 0) -> str:
        """As broker, result backend, or for redis-py."""
        return f"redis://127.0.0.1:{self.port}/{database}"

    def socket_url(self, database: int = 0) -> str:
        """As broker or result backend, over the unix socket."""
        return f"redis+socket://{self.socket}?virtual_host={database}"

    def client(self, database: int = 0) -> redis.Redis:
        return redis.Redis(host="127.0.0.1", port=self.port, db=database)


class PostgresServer:
    """A PostgreSQL cluster on a free port, as the ``postgres`` account when the tests are root's.

    Without ``fsync`` it is quick and survives ``kill -9``, but not a power cut.
    """

    def __init__(self, *, fsync: bool = False, max_connections: int = 200) -> None:
        self._initdb, server = require("initdb"), require("postgres")
        self.directory = Path(tempfile.mkdtemp(prefix="sw-postgres-"))
        self.port = free_port()
        self._data = self.directory / "data"
        self._account: tuple[str, ...] = ()
        if os.geteuid() == 0:  # PostgreSQL refuses to be root
            shutil.chown(self.directory, _POSTGRES_ACCOUNT)
            self._account = (
                *(require("setpriv"), f"--reuid={_POSTGRES_ACCOUNT}"),
                *(f"--regid={_POSTGRES_ACCOUNT}", "--init-groups", "--"),
            )
        durability = () if fsync else ("-c", "fsync=off", "-c", "full_page_writes=off")
        self._process = Process(
            (
                *(*self._account, server, "-D", str(self._data), "-k", str(self.directory)),
                *("-h", "127.0.0.1", "-p", str(self.port), *durability),
                *("-c", f"max_connections={max_connections}"),
            ),
            log=self.directory / "postgres.log",
        )
        self._databases = 0
        self._deadlocks = 0

    def start(self) -> Self:
        """Starts it; the first time, the cluster is made."""
        if not self._data.exists():
            subprocess.run(
                (
                    *(*self._account, self._initdb, "-D", str(self._data), "--no-sync"),
                    *("-U", _POSTGRES_ACCOUNT, "-A", "trust", "-E", "UTF8", "--locale=C"),
                ),
                check=True,
                capture_output=True,
                cwd=self.directory,
                timeout=limit(),
            )
        try:
            self._process.start(self._answers)
        except AssertionError:
            # The kernel may not have let go of a killed one's shared memory yet.
            if "shared memory block" not in self._process.output():
                raise
            time.sleep(1.0)
            self._process.start(self._answers)
        return self

    def _answers(self) -> bool:
        try:
            self._connect().close()
        except psycopg.OperationalError:  # not listening yet, or still recovering
            return False
        return True

    def stop(self, *, immediate: bool = False) -> None:
        """Ends its clients' connections and stops; ``immediate`` leaves recovery to the start."""
        self._process.signal(signal.SIGQUIT if immediate else signal.SIGINT)
        self._process.wait()

    def kill(self) -> None:
        """``kill -9`` of it and all its children: what the machine's own end would do."""
        self._process.close()

    def restart(self, *, immediate: bool = False) -> None:
        self.stop(immediate=immediate)
        self.start()

    def close(self) -> None:
        self._process.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def start_standby(self) -> PostgresServer:
        """Start another server that follows this one and takes no writes."""
        standby = PostgresServer()
        subprocess.run(
            (
                *(*self._account, require("pg_basebackup"), "-D", str(standby._data)),
                *("-h", "127.0.0.1", "-p", str(self.port), "-U", _POSTGRES_ACCOUNT),
                *("--write-recovery-conf", "--checkpoint=fast", "--no-sync"),
            ),
            check=True,
            capture_output=True,
            cwd=self.directory,
            timeout=60,
        )
        return standby.start()

    def promote(self) -> None:
        """Make a standby a primary."""
        self._run("SELECT pg_promote()")

    def demote(self) -> None:
        """Make a primary that was stopped come back as a standby, which takes no writes."""
        (self._data / "standby.signal").touch()
        self.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def url(self, database: str = "postgres") -> str:
        """For SQLAlchemy."""
        return f"postgresql+psycopg://{_POSTGRES_ACCOUNT}@127.0.0.1:{self.port}/{database}"

    def create_database(self, template: str = "template1") -> str:
        """Makes a database and gives its name; a copy of ``template``, which nobody may use now."""
        self._databases += 1
        name = f"test_{self._databases}"
        self._run("CREATE DATABASE {} TEMPLATE {}", name, template)
        return name

    def drop_database(self, name: str) -> None:
        """Drops it, whoever is still connected."""
        self._deadlocks += self._deadlocks_of(name)
        self._run("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)

    def deadlocks(self) -> int:
        """How many deadlocks the server has resolved, also in databases that were dropped."""
        return self._deadlocks + self._deadlocks_of("%")

    def deadlock_reports(self) -> str:
        """What the server's log says of each: who waited for whom, in which statements."""
        lines = self._process.output().splitlines()
        found = [number for number, line in enumerate(lines) if "deadlock detected" in line]
        return "\n".join("\n".join(lines[number : number + 12]) for number in found)

    def _deadlocks_of(self, databases: str) -> int:
        with self._connect() as connection:
            found = connection.execute(
                "SELECT coalesce(sum(deadlocks), 0) FROM pg_stat_database WHERE datname LIKE %s",
                (databases,),
            ).fetchone()
        return int(found[0]) if found else 0

    def _run(self, statement: LiteralString, *names: str) -> None:
        with self._connect() as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user=_POSTGRES_ACCOUNT,
            dbname="postgres",
            autocommit=True,
            connect_timeout=5,
        )
