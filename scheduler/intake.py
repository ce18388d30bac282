"""The request tasks: one a verb, ``sharewright.request.<verb>``, each taking one payload.

Validate, then store and dispatch (or read), then answer under the request's own id. A refusal is
an answer too: a failure under that id, with no row.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from celery import Celery
from celery.app.task import Task

from scheduler.acceptance.accept import Handler, is_taken, take_in
from scheduler.acceptance.handlers import HANDLERS
from scheduler.placement.pool_cache import PoolCache, cache_for
from scheduler.queries.reads import READS
from scheduler.requests.base import Kind, Verb, digest, is_id, parse
from scheduler.requests.verbs import VERBS
from worker.app import make_app, start
from worker.config import Config
from worker.db.core.engine import reading
from worker.engine.job import Runtime
from worker.errors import Forbidden, InvalidRequest, Refused
from worker.logs import about
from worker.messaging.broker import request_transport_options
from worker.messaging.queues import ADMIN_REQUESTS, READ_REQUESTS, REQUESTS
from worker.messaging.results import ACKNOWLEDGE_HEADER, StoreResult, acknowledge, storer

INTAKE_SECONDS: Final = 60
"""At most; a request is a transaction or two."""

_log = logging.getLogger(__name__)


def add_request_tasks(app: Celery, config: Config) -> None:
    """Register a task for every verb."""
    runtime_of: Callable[[], Runtime] = app.sharewright_runtime
    caches: dict[int, PoolCache] = {}
    store_answer = storer(app, expires=config.broker.read_result_expires)

    def pools_of(runtime: Runtime) -> PoolCache:
        return caches.setdefault(id(runtime.engine), cache_for(runtime.config, runtime.engine))

    def register(verb: Verb) -> None:
        def request(self: Task, payload: Any) -> None:
            runtime = runtime_of()
            _take(
                app,
                runtime,
                pools_of(runtime),
                store_answer if verb.kind is Kind.READ else runtime.store_result,
                verb=verb,
                message=self.request,
                payload=payload,
            )

        app.task(
            request,
            name=verb.task,
            bind=True,
            ignore_result=True,
            reject_on_worker_lost=True,
            time_limit=INTAKE_SECONDS,
            shared=False,
        )

    for verb in VERBS.values():
        register(verb)


def _take(
    app: Celery,
    runtime: Runtime,
    pools: PoolCache,
    store_result: StoreResult,
    *,
    verb: Verb,
    message: Any,
    payload: Any,
) -> None:
    if not is_id(message.id):
        unusable = InvalidRequest(
            "The id of a request consists of 1 to 64 letters, digits and any of ._:- ; "
            "send it again under such an id.",
            field="id",
        )
        store_result(message.id, None, unusable.to_json())
        return
    is_admin = message.delivery_info.get("routing_key") == ADMIN_REQUESTS
    try:
        if verb.admin and not is_admin:
            raise Forbidden(
                f"{verb.name} is an administrator's; it is taken from the queue "
                f"{ADMIN_REQUESTS} only."
            )
        asked = parse(verb, payload)
        if verb.kind is Kind.READ:
            if not _is_taken(runtime, message.id):
                with reading(runtime.engine) as connection:
                    answer = READS[verb.name](connection, asked, runtime.config)
                store_result(message.id, answer, None)
            return
        handler: Handler = HANDLERS[verb.name]

        def heard() -> None:
            if (message.headers or {}).get(ACKNOWLEDGE_HEADER):
                acknowledge(app, message.id)

        context = asked.context
        with about(operation=message.id, request=context.request_id, project=context.project_id):
            accepted = take_in(
                runtime,
                pools,
                verb,
                handler,
                asked,
                operation_id=message.id,
                digest=digest(verb, asked),
                is_admin=is_admin,
                heard=heard,
            )
        runtime.heartbeat.count(
            f"requests_total:{verb.name}:{'accepted' if accepted else 'dropped'}"
        )
    except Refused as refused:
        runtime.heartbeat.count(f"requests_total:{verb.name}:refused")
        if not _is_taken(runtime, message.id):
            store_result(message.id, None, refused.to_json())


def _is_taken(runtime: Runtime, request_id: str) -> bool:
    """Whether an operation has this id already: its result must not be written over."""
    with reading(runtime.engine) as connection:
        if not is_taken(connection, request_id):
            return False
    _log.warning("Dropped a request under the id %s, which an operation has already.", request_id)
    return True


QUEUES_OF: Final = {
    "all": [REQUESTS, READ_REQUESTS, ADMIN_REQUESTS],
    "changes": [REQUESTS, ADMIN_REQUESTS],
    "reads": [READ_REQUESTS, ADMIN_REQUESTS],
}
"""The queues that a scheduler consumes. An administrator's request is taken by whichever of the
two kinds has time."""


def run_scheduler(
    config: Config, *, requests: str = "all", concurrency: int = 1, pool: str = "solo"
) -> int:
    """Run the process that takes requests in, until it is told to stop; returns its exit code.

    ``requests`` is a key of :data:`QUEUES_OF`: processes for changes and for reads do not keep
    each other waiting.
    """
    app = make_app(config)
    app.conf.broker_transport_options = request_transport_options(config.broker)
    add_request_tasks(app, config)
    return start(
        app,
        config,
        queues=QUEUES_OF[requests],
        concurrency=concurrency,
        pool=pool,
        name="scheduler-reads" if requests == "reads" else "scheduler",
    )
