"""Create the Celery application, and run workers and the reconciler.

Importing this module creates nothing. :func:`make_app` takes the configuration; database engines,
backends and the heartbeat are created on first use, after the fork.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import os
import socket
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Final

from celery import Celery, signals
from celery.app.task import Task
from celery.exceptions import SecurityWarning

from worker.backends.assembly import Backend, assemble, check
from worker.backends.manager import ShareManager
from worker.config import Config
from worker.db.backends import check_configured
from worker.db.core.engine import check_settings, engine_for
from worker.db.dead_letters import DatabaseDeadLetters
from worker.db.networks.addresses import DatabaseAddressStore
from worker.engine.heartbeat import Heartbeat
from worker.engine.job import Runtime
from worker.engine.publisher import PREFIX, publisher
from worker.engine.runner import AttemptFailed, StepFailed, run
from worker.engine.saga import Action
from worker.engine.watchdog import Watchdog, watch_main_loop
from worker.errors import ConfigurationError
from worker.logs import set_up_logging
from worker.messaging.broker import our_transport, queue_depth, transport_options
from worker.messaging.consumer import Limits, install
from worker.messaging.queues import groups, queue_for, queues_of
from worker.messaging.results import storer
from worker.tasks.periodic import lease_renewals as renewals
from worker.tasks.periodic import server_checks as checks
from worker.tasks.periodic.pool_reports import PORTION, REPORT_TIMEOUT, TASK, report_pools
from worker.tasks.periodic.reconciler import Reconciler
from worker.tasks.sagas import ACTIONS, SAGAS
from worker.tasks.security import check_keys

_log = logging.getLogger(__name__)
HARD_LIMIT_GRACE: Final = 10
"""Seconds after a step's timeout after which Celery kills its process."""
POOLS: Final = ("prefork", "solo")


class App(Celery):  # type: ignore[misc] # celery ships no types
    """Celery's application, publishing through our transport if the broker is Redis."""

    def connection_for_write(self, url: str | None = None, **options: Any) -> Any:
        """Open a connection to publish on, with our transport's options unless others are given."""
        asked = {name: value for name, value in options.items() if value is not None}
        ours = our_transport(url or self.conf.broker_write_url or "")
        if self.conf.broker_use_ssl:
            ours.pop("ssl", None)
        return super().connection_for_write(**{"url": url, **ours, **asked})


def make_app(config: Config) -> Celery:
    """Return the application with the tasks of all steps; the scheduler adds those of requests."""
    app = App("sharewright", set_as_current=False)
    app.conf.update(
        broker_url=config.broker.url,
        broker_connection_retry_on_startup=True,
        broker_transport_options=transport_options(config.broker),
        result_backend=config.broker.result_backend,
        result_expires=config.broker.result_expires,
        result_serializer="json",
        # The reconciler stores a result that cannot be stored at once; a worker does not wait.
        result_backend_transport_options={"retry_policy": {"max_retries": 1, "timeout": 2.0}},
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=True,
        # The reconciler publishes the step of a killed process again, once its lease has run out.
        # A rejected message would come back before that.
        task_reject_on_worker_lost=False,
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_create_missing_queues=True,
        task_default_queue="requests",
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_send_task_events=True,
        task_send_sent_event=True,
        task_track_started=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_soft_shutdown_timeout=10.0,
        worker_enable_remote_control=True,
        enable_utc=True,
    )
    install(
        app,
        DatabaseDeadLetters(config.database.url),
        Limits(config.broker.max_message_bytes, config.broker.dead_letters_per_hour),
    )
    runtime_of = functools.partial(_runtime, app, config, {})
    for action in ACTIONS.values():
        _register(app, action, runtime_of)
    for name, work, limit in (
        (TASK, report_pools, REPORT_TIMEOUT * 2),
        (renewals.TASK, renewals.renew_leases, renewals.TIMEOUT * 2),
        (checks.TASK, checks.check_share_servers, checks.TIMEOUT),
    ):
        _register_periodic(app, name, work, limit, runtime_of)
    app.sharewright_runtime = runtime_of
    return app


def _register(app: Celery, action: Action, runtime_of: Callable[[], Runtime]) -> None:
    def step(self: Task, operation_id: str, dispatch: int) -> None:
        result = run(runtime_of(), action, operation_id, dispatch)
        if not result:
            self.request.chain = None
        if isinstance(result, StepFailed):
            raise AttemptFailed(result.message)

    app.task(
        step,
        name=PREFIX + action.name,
        bind=True,
        throws=(AttemptFailed,),
        ignore_result=True,
        time_limit=action.timeout + HARD_LIMIT_GRACE,
        shared=False,
    )


def _register_periodic(
    app: Celery,
    name: str,
    work: Callable[[Runtime, list[str]], object],
    limit: float,
    runtime_of: Callable[[], Runtime],
) -> None:
    """Register a task of the reconciler; its argument is a list of backends or share servers."""

    def periodic(names: list[str]) -> None:
        work(runtime_of(), names)

    app.task(periodic, name=PREFIX + name, ignore_result=True, time_limit=limit, shared=False)


def _runtime(app: Celery, config: Config, made: dict[int, Runtime]) -> Runtime:
    """Return this process's runtime, creating it after a fork."""
    found = made.get(os.getpid())
    if found is not None:
        return found
    made.clear()
    engine = engine_for(config.database.url)

    @functools.cache
    def manager(backend: str) -> ShareManager:
        return ShareManager(backend_here(config, backend))

    runtime = made[os.getpid()] = Runtime(
        config=config,
        engine=engine,
        sagas=SAGAS,
        manager=manager,
        publish=publisher(app, SAGAS),
        store_result=storer(app),
        worker=f"{socket.gethostname()}:{os.getpid()}",
        heartbeat=Heartbeat(engine, config.engine.lease),
    )
    return runtime


def backend_here(config: Config, name: str) -> Backend:
    """Assemble a backend on this host.

    Raises :class:`~worker.errors.ConfigurationError` when the backend cannot work here.
    """
    addresses = DatabaseAddressStore(config.database.url, rest=config.engine.address_rest)
    return assemble(config, name, addresses)


def run_reconciler(config: Config, stopped: threading.Event) -> None:
    """Run a reconciler until ``stopped`` is set.

    Raises :class:`~worker.errors.ConfigurationError` before the first pass when the
    database's settings are unsuitable or the configuration lacks a backend that is in use.
    """
    check_settings(config.database.url)
    check_configured(config.database.url, config.backends)
    app = make_app(config)
    runtime = app.sharewright_runtime()

    def depth(queue: str) -> int:
        with app.connection_or_acquire() as connection:
            return queue_depth(connection, queue)

    def ask_for_reports() -> None:
        for group in groups(config):
            queues = itertools.cycle(queues_of(config, group))
            names = sorted(config.backends_of(group))
            for begin in range(0, len(names), PORTION):
                app.send_task(
                    PREFIX + TASK,
                    args=(names[begin : begin + PORTION],),
                    queue=next(queues),
                    expires=config.engine.report_interval,
                    ignore_result=True,
                    retry=False,
                )

    def send_renewals(backend: str, servers: Sequence[str]) -> None:
        app.send_task(
            PREFIX + renewals.TASK,
            args=(servers,),
            queue=queue_for(config, backend),
            expires=renewals.ASK_AGAIN,
            ignore_result=True,
            retry=False,
        )

    def send_checks(queue: str, backends: Sequence[str]) -> None:
        app.send_task(
            PREFIX + checks.TASK,
            args=(backends,),
            queue=queue,
            expires=checks.ASK_AGAIN,
            ignore_result=True,
            retry=False,
        )

    watchdog = Watchdog("The reconciler's pass", config.engine.watchdog)
    Reconciler(runtime, depth, ask_for_reports, send_renewals, send_checks, beat=watchdog.beat).run(
        stopped
    )
    watchdog.stop()


def check_pool(pool: str) -> None:
    """Refuse a pool that runs several steps in one process, because a process renews one lease.

    Raises :class:`~worker.errors.ConfigurationError`.
    """
    if pool not in POOLS:
        raise ConfigurationError(
            f"The pool {pool!r} cannot be used: steps are leased one a process; "
            f"choose {' or '.join(POOLS)}."
        )


def check_times(config: Config) -> None:
    """Refuse times so short that a stopped worker could continue on objects it no longer owns.

    Raises :class:`~worker.errors.ConfigurationError`.
    """
    engine = config.engine
    longest = max(ACTIONS.values(), key=lambda action: action.timeout)
    least = engine.lease + longest.timeout + HARD_LIMIT_GRACE
    reasons = {
        "address_rest": "a freed address could be allocated again while a worker that was stopped "
        "still uses it",
        "audit_grace": "an audit could remove what a worker that was stopped is still creating",
    }
    for option, reason in reasons.items():
        if getattr(engine, option) < least:
            raise ConfigurationError(
                f"engine.{option} is {getattr(engine, option):g} s: {reason}. Set it to {least:g} "
                f"or more: a lease ({engine.lease:g} s), the longest step ({longest.name}, "
                f"{longest.timeout:g} s) and {HARD_LIMIT_GRACE} s."
            )


def run_worker(
    config: Config, group: str, *, concurrency: int = 2, pool: str = "prefork", name: str = ""
) -> int:
    """Run the worker of a group until it is told to stop; return its exit code.

    Raises :class:`~worker.errors.ConfigurationError` before the first message is consumed when a
    backend of the group cannot work on this host.
    """
    check_pool(pool)
    check_times(config)
    check_settings(config.database.url)
    check_configured(config.database.url, config.backends)
    mine = config.backends_of(group)
    if not mine:
        known = ", ".join(sorted({b.worker_group for b in config.backends.values()})) or "none"
        raise ConfigurationError(
            f"No backend belongs to worker group {group!r}; the configuration has: {known}."
        )
    for backend in mine:
        check(backend_here(config, backend))
    if any(backend.host for backend in mine.values()):
        check_state_dir(config)
    if any(backend.mode.has_share_servers for backend in mine.values()):
        check_keys(config)
    engine_for(config.database.url).dispose()
    app = make_app(config)

    def report_at_once(**_: Any) -> None:
        app.send_task(
            PREFIX + TASK,
            args=(sorted(mine),),
            queue=queues_of(config, group)[0],
            ignore_result=True,
        )

    signals.worker_ready.connect(report_at_once, weak=False)
    return start(
        app,
        config,
        queues=queues_of(config, group),
        concurrency=concurrency,
        pool=pool,
        name=name or own_name(group, config.broker.url),
        longest_task=max(action.timeout for action in ACTIONS.values()),
    )


_names_taken: Final[list[socket.socket]] = []
"""The sockets that reserve this process's names; open until it ends."""


def own_name(name: str, broker_url: str) -> str:
    """Return a worker name that no other process on this host uses with this broker.

    The first process gets ``name`` itself, the second ``<name>-2``. An abstract Unix socket
    reserves the name. The kernel frees it however the process ends, so a restarted process gets
    the same name.
    """
    service = hashlib.sha256(broker_url.encode()).hexdigest()[:16]
    for number in itertools.count(1):
        found = name if number == 1 else f"{name}-{number}"
        taken = socket.socket(socket.AF_UNIX)
        try:
            taken.bind(f"\0sharewright-{service}-{found}")
        except OSError:
            taken.close()
            continue
        _names_taken.append(taken)
        return found
    raise AssertionError("counting does not end")


def check_state_dir(config: Config) -> None:
    """Refuse a state directory that this process cannot create or write to.

    Raises :class:`~worker.errors.ConfigurationError`.
    """
    directory = config.state_dir
    try:
        directory.mkdir(parents=True, exist_ok=True)
        usable = os.access(directory, os.W_OK | os.X_OK)
        why = "this user may not write there"
    except OSError as error:
        usable, why = False, str(error.strerror)
    if not usable:
        raise ConfigurationError(
            f"The directory {directory} cannot be used ({why}); change state_dir, or who owns it."
        )


def start(
    app: Celery,
    config: Config,
    *,
    queues: list[str],
    concurrency: int,
    pool: str,
    name: str,
    longest_task: float = 0.0,
) -> int:
    """Run one Celery worker in this process until it is told to stop; return its exit code.

    In the pool ``solo`` the main loop runs the tasks itself, so the watchdog waits
    ``longest_task`` seconds longer.
    """
    blocked = longest_task if pool == "solo" else 0.0
    watch_main_loop(app, Watchdog(f"The main loop of {name}", config.engine.watchdog + blocked))

    def our_logging(**_: Any) -> None:
        set_up_logging(config.log)

    signals.setup_logging.connect(our_logging, weak=False)
    our_logging()
    _log.info("%s takes from %s; process %d", name, ", ".join(queues), os.getpid())
    if config.log.format == "json":
        # Celery writes about its shutdown to standard output, bypassing the log.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    # Celery warns about root, which share servers need, and about pickle, which is not accepted.
    warnings.simplefilter("ignore", SecurityWarning)
    worker = app.Worker(
        quiet=True,
        hostname=f"{name}@{socket.gethostname()}",
        queues=queues,
        pool=pool,
        concurrency=concurrency,
        without_mingle=True,
        without_gossip=True,
        task_events=True,
        prefetch_multiplier=1,
        loglevel=config.log.level,
        optimization="fair",
    )
    worker.start()
    _log.info("%s has stopped", name)
    return int(worker.exitcode or 0)
