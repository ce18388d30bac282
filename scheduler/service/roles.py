"""The processes of an embedded service, each forked after its modules were imported."""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from celery import signals

from scheduler.intake import run_scheduler
from scheduler.service.health import serve
from worker.app import run_reconciler, run_worker
from worker.backends.assembly import COMPUTE, DRIVERS, NETWORK, plugin_class
from worker.config import Config
from worker.errors import ConfigurationError
from worker.messaging.queues import groups

_LATE_IMPORTS: Final = (
    *("celery.apps.worker", "celery.backends.redis", "celery.worker.consumer"),
    *("celery.concurrency.prefork", "celery.concurrency.solo", "celery.worker.strategy"),
    *("kombu.transport.redis", "celery.fixups", "sqlalchemy.dialects.sqlite.pysqlite"),
    *("celery.worker.autoscale", "celery.app.events", "celery.app.log", "celery.app.amqp"),
)
"""Modules that Celery and SQLAlchemy would otherwise import in every child separately."""


@dataclass(frozen=True, slots=True)
class Role:
    """A process that is kept running. ``run`` gets a function to call once it is ready."""

    name: str
    run: Callable[[Callable[[], None]], int]


def warm_up(config: Config) -> None:
    """Import in the parent what the children need, so that they share its memory."""
    for module in _LATE_IMPORTS:
        importlib.import_module(module)
    for name, backend in config.backends.items():
        plugin_class(DRIVERS, backend.share_driver, name)
        if backend.compute_helper:
            plugin_class(COMPUTE, backend.compute_helper, name)
        for helper in backend.network_helpers:
            plugin_class(NETWORK, helper, name)
    gc.collect()
    gc.freeze()  # a collection in a child would write to every page that it shares


def roles_of(config: Config, concurrency: int, listener: socket.socket) -> list[Role]:
    """Everything but Redis; raises when there is no backend to serve."""
    if not config.backends:
        raise ConfigurationError("The configuration has no backend; add a [backends.<name>].")
    return [
        _scheduler(config, "scheduler", "changes"),
        _scheduler(config, "scheduler-reads", "reads"),
        *(_worker(config, group, concurrency) for group in groups(config)),
        Role("reconciler", lambda ready: _until_told(ready, config, run_reconciler)),
        Role(
            "health",
            lambda ready: _until_told(
                ready, config, lambda config, stopped: serve(config, listener, stopped)
            ),
        ),
    ]


def _scheduler(config: Config, name: str, requests: str) -> Role:
    return Role(
        name,
        lambda ready: _celery(ready, lambda: run_scheduler(config, requests=requests)),
    )


def _worker(config: Config, group: str, concurrency: int) -> Role:
    return Role(
        f"worker-{group}",
        lambda ready: _celery(ready, lambda: run_worker(config, group, concurrency=concurrency)),
    )


def _celery(ready: Callable[[], None], run: Callable[[], int]) -> int:
    def tell(**_: Any) -> None:
        ready()

    signals.worker_ready.connect(tell, weak=False)
    return run()


def _until_told(
    ready: Callable[[], None], config: Config, run: Callable[[Config, threading.Event], None]
) -> int:
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    ready()
    run(config, stopped)
    return 0


def tell(pipe: int, role: str, **news: str) -> None:
    """Tell the supervisor something, in one write that nothing gets between."""
    os.write(pipe, json.dumps({"role": role, **news}).encode() + b"\n")
