"""``sharewright up``: keeps Redis, scheduler, workers, reconciler and health running.

The supervisor has one thread, no database connection and no engine: it imports what its children
need and forks them, so that they share memory. A child that dies is started again. What serves
the shares is no child of anybody here and outlives all of it.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from scheduler.exits import EXIT_CONFIGURATION
from scheduler.service import redis, tree
from scheduler.service.defaults import configuration
from scheduler.service.home import Home
from worker.config import Config, LogSettings
from worker.errors import ConfigurationError
from worker.logs import set_up_logging
from worker.sealing import Keys

_log = logging.getLogger(__name__)
REDIS: Final = "redis"
_SIGNALS: Final = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 10.0
_STABLE_SECONDS: Final = 30.0
_REDIS_SECONDS: Final = 10.0
_STARTING_TICK: Final = 0.03
_RUNNING_TICK: Final = 1.0


def run_up(home: Home, *, concurrency: int, grace: float, log_level: str | None) -> int:
    """Run the embedded service until told to stop; return the exit code.

    Raises :class:`~worker.errors.SharewrightError` when it cannot start.
    """
    _make(home)
    with tree.alone(home.path) as members:
        config = _configuration(home, log_level)
        keys = Keys(config.secrets.directory)
        if keys.current() is None:
            keys.generate()
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        return Supervisor(home, config, concurrency, grace, members).run()


def _make(home: Home) -> None:
    """Make the home's directories, after its path was found to be usable."""
    home.check()
    try:
        home.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        home.logs.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"The home {home.path} cannot be used: {error.strerror}; choose another --home."
        ) from error


def _configuration(home: Home, log_level: str | None) -> Config:
    config, lacks = configuration(home)
    _set_up_log(config.log)
    if lacks:
        why = "; ".join(lacks)
        _log.info("No NFS on this machine: %s. The service runs on the fakes.", why)
    if log_level is not None:
        config = config.model_copy(
            update={"log": config.log.model_copy(update={"level": log_level.upper()})}
        )
    return config


def _set_up_log(settings: LogSettings) -> None:
    """Log as the children do where that is JSON; else say things plainly to whoever started it."""
    if settings.format == "json":
        set_up_logging(settings)
        return
    said, troubles = logging.StreamHandler(sys.stdout), logging.StreamHandler(sys.stderr)
    said.addFilter(lambda record: record.levelno < logging.WARNING)
    troubles.setLevel(logging.WARNING)
    troubles.setFormatter(logging.Formatter("sharewright: %(message)s"))
    _log.handlers[:] = [said, troubles]
    _log.setLevel(logging.INFO)
    _log.propagate = False


@dataclass(slots=True)
class _Child:
    """A process that is to run, and when to start it again."""

    name: str
    start: Callable[[], int]
    pid: int | None = None
    started: float = 0.0
    due: float = 0.0
    deaths: int = 0
    ready: bool = False

    def begin(self) -> None:
        self.pid = self.start()
        self.started = time.monotonic()

    def ended(self) -> None:
        now = time.monotonic()
        self.deaths = 1 if now - self.started > _STABLE_SECONDS else self.deaths + 1
        self.due = now + min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(self.deaths - 1, 8))
        self.pid = None
        self.ready = False


@dataclass(slots=True)
class Supervisor:
    """The process at the root of the tree."""

    home: Home
    config: Config
    concurrency: int
    grace: float
    members: int
    _children: dict[str, _Child] = field(default_factory=dict)
    _news: tuple[int, int] = (-1, -1)
    _began: float = field(default_factory=time.time)
    _health: tuple[str, int] = ("", 0)
    _announced: bool = False
    _refusal: str = ""

    def run(self) -> int:
        """Start everything, keep it running, and stop it when told to."""
        migration = self._fork("migration", self._migrate, ())
        # Heavy imports, while the migration runs beside them.
        from scheduler.service.health import listen  # noqa: PLC0415
        from scheduler.service.roles import Role, roles_of, tell, warm_up  # noqa: PLC0415

        self._news = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        listener = listen(self.config.health)
        self._health = listener.getsockname()[:2]
        command = redis.command(self.home)
        self._add(REDIS, lambda: tree.execute(command, self.home.log(REDIS), self.members)).begin()
        try:
            warm_up(self.config)
            roles = roles_of(self.config, self.concurrency, listener)
            _check(migration, self.home.log("migration"))

            def started(role: Role) -> int:
                def body() -> int:
                    try:
                        return role.run(lambda: tell(self._news[1], role.name))
                    except ConfigurationError as error:
                        tell(self._news[1], role.name, refused=error.message)
                        raise

                foreign = () if role.name == "health" else (listener.fileno(),)
                return self._fork(role.name, body, (self._news[0], *foreign))

            for role in roles:
                self._add(role.name, functools.partial(started, role))
            return self._supervise()
        finally:
            self._stop()
            listener.close()
            self.home.service_path.unlink(missing_ok=True)

    def _add(self, name: str, start: Callable[[], int]) -> _Child:
        child = self._children[name] = _Child(name, start)
        return child

    def _fork(self, name: str, body: Callable[[], int], close: tuple[int, ...]) -> int:
        def logged() -> int:
            set_up_logging(self.config.log)
            return body()

        return tree.fork(name, self.home.log(name), close, logged)

    def _migrate(self) -> int:
        from worker.db.schema import upgrade  # noqa: PLC0415 - in the child only

        upgrade(self.config.database.url)
        return 0

    def _supervise(self) -> int:
        while True:
            number = signal.sigtimedwait(
                _SIGNALS, _RUNNING_TICK if self._announced else _STARTING_TICK
            )
            if number is not None and number.si_signo != signal.SIGCHLD:
                _log.info("Stopping: workers finish what they have in hand.")
                return 0
            self._reap()
            self._hear()
            if self._refusal and not self._announced:
                _log.error("%s", self._refusal)
                return EXIT_CONFIGURATION
            self._start_due()
            if self._announced:
                self.home.shorten_logs()
            else:
                self._announce()

    def _start_due(self) -> None:
        now = time.monotonic()
        first = self._children[REDIS]
        if not first.ready and first.pid is not None:
            first.ready = redis.answers(self.home)
        started = False
        for child in self._children.values():
            # Before Redis answered for the first time, the others could only fail.
            if child.pid is None and child.due <= now and (child is first or first.ready):
                child.begin()
                started = True
        if started:
            self._write_service()

    def _reap(self) -> None:
        """Reap dead children and kill what is left of their process groups."""
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            # Not reaped yet, so that its number cannot be another's by now.
            _kill_group(found.si_pid)
            _, status = os.waitpid(found.si_pid, 0)
            for child in self._children.values():
                if child.pid == found.si_pid:
                    child.ended()
                    code = os.waitstatus_to_exitcode(status)
                    _log.warning(
                        "%s (process %d) ended with %d; it is started again in %.1f s. See %s.",
                        child.name,
                        found.si_pid,
                        code,
                        child.due - time.monotonic(),
                        self.home.log(child.name),
                    )

    def _hear(self) -> None:
        """Read the messages of the children."""
        try:
            news = os.read(self._news[0], 65536)
        except BlockingIOError:
            return
        for line in news.decode().splitlines():
            item = json.loads(line)
            self._refusal = item.get("refused", self._refusal)
            self._children[item["role"]].ready = True

    def _announce(self) -> None:
        if not all(child.ready for child in self._children.values()) or not self._is_ready():
            return
        self._announced = True
        seconds = time.time() - self._began
        backends = ", ".join(sorted(self.config.backends))
        _log.info(
            "ready: backends %s; health http://%s:%d; home %s; %.1f s",
            backends,
            *self._health,
            self.home.path,
            seconds,
        )

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection(*self._health, timeout=1.0)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.client.OK
        except OSError:
            return False
        finally:
            connection.close()

    def _write_service(self) -> None:
        pids = {name: child.pid for name, child in self._children.items() if child.pid}
        self.home.write_service(
            {
                "broker_url": self.config.broker.url,
                "result_backend": self.config.broker.result_backend,
                "database_url": self.config.database.url,
                "health_url": f"http://{self._health[0]}:{self._health[1]}",
                "backends": sorted(self.config.backends),
                "started_at": self._began,
                "pids": {"up": os.getpid(), **pids},
            }
        )

    def _stop(self) -> None:
        """End everything: workers may finish, Redis goes last. A second signal cuts it short."""
        first = self._children.pop(REDIS)
        self._end(list(self._children.values()), self.grace)
        self._end([first], _REDIS_SECONDS)

    def _end(self, children: list[_Child], seconds: float) -> None:
        left = {child.pid for child in children if child.pid is not None}
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while left and time.monotonic() < deadline:
            number = signal.sigtimedwait(_SIGNALS, 0.1)
            if number is not None and number.si_signo != signal.SIGCHLD:
                break
            left -= _ended(left)
        for pid in left:
            _log.warning("Process %d did not stop in time and is killed.", pid)
            _kill_group(pid)
        while left:
            left -= _ended(left)
            signal.sigtimedwait((signal.SIGCHLD,), 0.05)


def _ended(pids: set[int]) -> set[int]:
    """Reap ended processes and kill what is left of their process groups."""
    gone = set()
    for pid in pids:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            _kill_group(pid)
            os.waitpid(pid, 0)
            gone.add(pid)
    return gone


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _check(migration: int, log: Path) -> None:
    _, status = os.waitpid(migration, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise ConfigurationError(
            f"The database could not be brought to this version's tables; see {log}."
        )
