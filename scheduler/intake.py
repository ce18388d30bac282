"""The request tasks: ``sharewright.request.<verb>`` for each verb, each with one payload.

A task validates the request, accepts it (or reads), and answers under the request's own id. A
refusal, or a defect of the service, is answered with a failure under that id and leaves no row.
While the database or the broker cannot be reached, the message goes back to its queue.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from celery import Celery
from celery.app.task import Task
from celery.exceptions import Reject
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnectionLeft

from scheduler.acceptance.accept import is_taken, take_in
from scheduler.acceptance.handlers import HANDLERS
from scheduler.placement.pool_cache import PoolCache, cache_for
from scheduler.queries.reads import READS
from scheduler.requests.base import Kind, Payload, Verb, digest, is_id, parse
from scheduler.requests.verbs import VERBS
from worker.app import make_app, own_name, start
from worker.config import Config
from worker.db.backends import check_configured
from worker.db.core.engine import reading
from worker.db.core.outages import is_passing, patiently
from worker.engine.job import Runtime
from worker.errors import ErrorCode, Forbidden, InvalidRequest, SharewrightError
from worker.logs import about
from worker.messaging.broker import UNREACHABLE, request_transport_options
from worker.messaging.queues import ADMIN_REQUESTS, READ_REQUESTS, REQUESTS
from worker.messaging.results import ACKNOWLEDGE_HEADER, StoreResult, acknowledge, storer

INTAKE_SECONDS: Final = 60
"""Time limit of a request; it needs one or two transactions."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Received:
    """Message of one request, with the objects that are needed to answer it."""

    app: Celery
    runtime: Runtime
    pools: Callable[[Runtime], PoolCache]
    store_answer: StoreResult
    verb: Verb
    message: Any
    payload: Any

    @property
    def id(self) -> str:
        """The id that the producer chose; its operation gets the same id."""
        return str(self.message.id)

    def ids(self) -> dict[str, str]:
        """Return the ids for its log lines, as far as the payload has them."""
        context = self.payload.get("context") if isinstance(self.payload, dict) else None
        given = context if isinstance(context, dict) else {}
        asked = {name: str(given.get(f"{name}_id", ""))[:64] for name in ("request", "project")}
        return {"operation": self.id, **asked}


def add_request_tasks(app: Celery, config: Config) -> None:
    """Register a Celery task for every verb."""
    runtime_of: Callable[[], Runtime] = app.sharewright_runtime
    caches: dict[int, PoolCache] = {}
    store_read = storer(app, expires=config.broker.read_result_expires)

    def pools_of(runtime: Runtime) -> PoolCache:
        return caches.setdefault(id(runtime.engine), cache_for(runtime.config, runtime.engine))

    def register(verb: Verb) -> None:
        def request(self: Task, payload: Any) -> None:
            runtime = runtime_of()
            store = store_read if verb.kind is Kind.READ else runtime.store_result
            received = _Received(app, runtime, pools_of, store, verb, self.request, payload)
            with about(**received.ids()):
                _take(received)

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


def _take(received: _Received) -> None:
    """Answer a request; during an outage, return its message to the queue instead.

    A message is therefore acknowledged only when there is an operation or an answer under its id.
    """
    try:
        failure = _failure(received)
        if failure is not None and not (
            is_id(received.id) and _is_taken(received.runtime, received.id)
        ):
            received.store_answer(received.id, None, failure)
    except (DBAPIError, NoConnectionLeft, *UNREACHABLE) as error:
        if not _is_outage(error):
            raise
        _log.warning(
            "Gave request %s (%s) back to the broker: %s. It is tried again after the outage.",
            received.id,
            received.verb.name,
            _first_line(error),
        )
        raise Reject(error, requeue=True) from error


def _failure(received: _Received) -> Mapping[str, str] | None:
    """Carry out a request; return the failure to report to its producer, or None.

    Raises errors that are outages by :func:`_is_outage`.
    """
    count, verb = received.runtime.heartbeat.count, received.verb
    try:
        _carry_out(received)
    except SharewrightError as error:
        count(f"requests_total:{verb.name}:refused")
        _log.info("Refused %s: %s (%s)", verb.name, error.message, error.code)
        return error.to_json()
    except Exception as error:
        if _is_outage(error):
            raise
        count(f"requests_total:{verb.name}:failed")
        _log.exception("Request %s (%s) met a defect.", received.id, verb.name)
        return SharewrightError(
            f"The request {verb.name} met a defect of the service ({type(error).__name__}) and was "
            f"not accepted; an administrator finds the reason in the log under {received.id}.",
            code=ErrorCode.INTERNAL,
        ).to_json()
    return None


def _is_outage(error: BaseException) -> bool:
    return isinstance(error, UNREACHABLE) or is_passing(error)


def _first_line(error: BaseException) -> str:
    reason = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return f"{type(reason).__name__}: {(str(reason).splitlines() or [''])[0]:.200}"


def _carry_out(received: _Received) -> None:
    """Answer a read request, or accept an operation."""
    runtime, verb, message = received.runtime, received.verb, received.message
    if not is_id(received.id):
        raise InvalidRequest(
            "The id of a request consists of 1 to 64 letters, digits and any of ._:- ; "
            "send it again under such an id.",
            field="id",
        )
    is_admin = message.delivery_info.get("routing_key") == ADMIN_REQUESTS
    if verb.admin and not is_admin:
        raise Forbidden(
            f"{verb.name} is for administrators; send it to the queue {ADMIN_REQUESTS}."
        )
    request = parse(verb, received.payload)
    if verb.kind is Kind.READ:
        _answer(received, request)
        return

    def heard() -> None:
        if (message.headers or {}).get(ACKNOWLEDGE_HEADER):
            acknowledge(received.app, received.id)

    accepted = take_in(
        runtime,
        received.pools(runtime),
        verb,
        HANDLERS[verb.name],
        request,
        operation_id=received.id,
        digest=digest(verb, request),
        is_admin=is_admin,
        heard=heard,
    )
    outcome = "accepted" if accepted else "dropped"
    runtime.heartbeat.count(f"requests_total:{verb.name}:{outcome}")
    _log.info("%s %s", outcome.capitalize(), verb.name)


def _answer(received: _Received, request: Payload) -> None:
    """Store the answer to a read request."""
    runtime = received.runtime
    if _is_taken(runtime, received.id):
        return
    for attempt in patiently():
        with attempt, reading(runtime.engine) as connection:
            answer = READS[received.verb.name](connection, request, runtime.config)
    received.store_answer(received.id, answer, None)


def _is_taken(runtime: Runtime, request_id: str) -> bool:
    """Tell whether an operation has this id already: its result must not be overwritten."""
    for attempt in patiently():
        with attempt, reading(runtime.engine) as connection:
            taken = is_taken(connection, request_id)
    if not taken:
        return False
    _log.warning("Dropped a request under the id %s, which an operation has already.", request_id)
    return True


QUEUES_OF: Final = {
    "all": [REQUESTS, READ_REQUESTS, ADMIN_REQUESTS],
    "changes": [REQUESTS, ADMIN_REQUESTS],
    "reads": [READ_REQUESTS, ADMIN_REQUESTS],
}
"""The queues that each kind of scheduler process consumes. Administrators' requests are taken by
all of them."""


def run_scheduler(
    config: Config, *, requests: str = "all", concurrency: int = 1, pool: str = "solo"
) -> int:
    """Run a scheduler process until it is told to stop; return its exit code.

    ``requests`` is a key of :data:`QUEUES_OF`. With processes of their own, changes and reads do
    not wait for each other.
    """
    check_configured(config.database.url, config.backends)
    name = "scheduler-reads" if requests == "reads" else "scheduler"
    app = make_app(config)
    app.conf.broker_transport_options = request_transport_options(config.broker)
    add_request_tasks(app, config)
    return start(
        app,
        config,
        queues=QUEUES_OF[requests],
        concurrency=concurrency,
        pool=pool,
        name=own_name(name, config.broker.url),
    )
