"""Check every few seconds that share servers work, and start the repair of those that do not.

The reconciler sends the check to a worker of the backend's group. The worker asks the compute
helper (or, in ``single_svm``, the driver) which servers have stopped, and starts an operation for
each. If none has, that is one message and one question per backend, however many servers it has.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from worker.db.core.engine import reading, transaction
from worker.db.share_servers import health
from worker.engine.accept import Begin
from worker.engine.job import Runtime
from worker.errors import SharewrightError
from worker.messaging.queues import queue_for
from worker.model import Outage, RequestContext
from worker.tasks.repairs import ENSURE_SERVER, Requester, Started, start

TASK: Final = "check_share_servers"
CHECK_SECONDS: Final = 3.0
"""Seconds between two checks of a backend: a stopped server has to work again within 10 s."""
ASK_AGAIN: Final = 15.0
"""Seconds after which a check that no worker has made is sent again."""
TIMEOUT: Final = 60.0

Send = Callable[[str, Sequence[str]], None]
"""Sends the names of backends to check to a queue."""

_log = logging.getLogger(__name__)


def ask_for_checks(runtime: Runtime, send: Send) -> None:
    """Send the checks that are due, one message per queue; only one reconciler sends each."""
    config = runtime.config
    with transaction(runtime.engine) as connection:
        due = health.ask(connection, again_after=ASK_AGAIN, limit=config.engine.redrive_batch)
    queues: dict[str, list[str]] = {}
    for name in due:
        if name in config.backends:
            queues.setdefault(queue_for(config, name), []).append(name)
    for queue, names in queues.items():
        send(queue, names)


def check_share_servers(runtime: Runtime, names: Sequence[str]) -> None:
    """Start the repair of servers that have stopped on these backends; schedule the next check."""
    for name in names:
        try:
            _check(runtime, name)
        except SharewrightError as error:
            _log.warning(
                "Share servers of backend %s could not be checked: %s", name, error.message
            )
        with transaction(runtime.engine) as connection:
            health.looked_at(connection, name, again_after=CHECK_SECONDS)
    runtime.heartbeat.flush()


def _check(runtime: Runtime, name: str) -> None:
    manager = runtime.manager(name)
    if not manager.backend.mode.has_share_servers:
        if not manager.serves(RequestContext("")):
            _repair_predefined(runtime, name)
        return
    with reading(runtime.engine) as connection:
        servers = health.active(connection, name)
    if not servers:
        return
    for server_id, outage in manager.outages(servers).items():
        _repair(runtime, server_id, outage)


def _repair(runtime: Runtime, server_id: str, outage: Outage) -> None:
    with transaction(runtime.engine) as connection:
        # A server that is being deleted by now is not repaired.
        row = health.hold_active(connection, server_id)
        if row is None:
            return
        started = start(
            connection,
            runtime.config,
            runtime.sagas,
            Begin(ENSURE_SERVER, ("share_server", server_id), row.backend),
            requester=Requester(row.project_id),
        )
    _announce(runtime, started, f"share server {server_id}", outage)


def _repair_predefined(runtime: Runtime, backend: str) -> None:
    with transaction(runtime.engine) as connection:
        health.hold_backend(connection, backend)
        started = start(
            connection,
            runtime.config,
            runtime.sagas,
            Begin(ENSURE_SERVER, ("backend", backend), backend),
            requester=Requester(""),
        )
    _announce(runtime, started, f"the predefined server of {backend}", Outage.FILE_SERVER)


def _announce(runtime: Runtime, started: Started, what: str, outage: Outage) -> None:
    if not started.dispatches:
        return  # a repair is already accepted
    runtime.heartbeat.count(f"share_server_outages_total:{outage}")
    _log.warning(
        "Found %s without its %s; operation %s repairs it.",
        what,
        outage.replace("_", " "),
        started.operation_id,
    )
    runtime.publish_all(started.dispatches)
