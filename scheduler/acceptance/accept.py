"""Accept a request: commit its rows, then publish the first message of its operation.

All changes of a request are written in one transaction, together with its operation. Results are
stored and messages are published only after the commit. If the process dies in between, the
operation becomes overdue and the reconciler recovers it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, bindparam, select
from sqlalchemy.exc import IntegrityError
from tenacity import (
    retry,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_random,
    wait_random_exponential,
)

from scheduler.placement.pool_cache import PoolCache
from scheduler.requests.base import Payload, Verb
from worker.config import Config
from worker.db.core.engine import db_now, insert_into, transaction
from worker.db.core.outages import is_passing
from worker.db.core.prepared import Prepared
from worker.db.operations.values import Dispatch
from worker.db.tables.main import operation_aliases
from worker.db.tables.main import operations as operations_table
from worker.engine.accept import (
    AlreadyAccepted,
    Begin,
    Completed,
    OperationRequest,
    accept,
    accept_completed,
)
from worker.engine.job import Runtime
from worker.engine.saga import Sagas
from worker.errors import ErrorCode, InvalidRequest, ObjectKind, Refused
from worker.failpoints import failpoint
from worker.model import OperationState

_log = logging.getLogger(__name__)
_ATTEMPTS: Final = 30
"""Attempts after lost races; many requests on one row at once need more than a few."""
_OUTAGE_SECONDS: Final = 10.0
"""Seconds to wait for an unreachable database before the request goes back to its queue."""


@dataclass(slots=True)
class Acceptance:
    """State of accepting one request: its open transaction, and the work after the commit.

    ``dispatches`` are the messages to publish. ``ended`` are the operations with results to store:
    id, result and error of each.
    """

    connection: Connection
    config: Config
    sagas: Sagas
    pools: PoolCache
    verb: Verb
    request: Any
    operation_id: str
    digest: str
    is_admin: bool
    """Whether the request came through the administrators' queue."""
    dispatches: list[Dispatch] = field(default_factory=list)
    ended: list[tuple[str, Mapping[str, Any] | None, Mapping[str, str] | None]] = field(
        default_factory=list
    )

    @property
    def project_id(self) -> str:
        """The id of the project that the request is made for."""
        return str(self.request.context.project_id)

    @property
    def origin(self) -> OperationRequest:
        """The operation that the request asks for."""
        context = self.request.context
        return OperationRequest(
            operation_id=self.operation_id,
            verb=self.verb.name,
            project_id=context.project_id,
            user_id=context.user_id,
            request_id=context.request_id,
            payload=self.request.model_dump(
                mode="json",
                exclude={"context", "version", "idempotency_key", *self.request.secret_fields},
            ),
            payload_digest=self.digest,
            idempotency_key=self.request.idempotency_key,
        )


Handler = Callable[[Acceptance], Begin | Completed]
"""Writes a request's changes in the open transaction; returns the operation to begin or to end."""


def take_in(
    runtime: Runtime,
    pools: PoolCache,
    verb: Verb,
    handler: Handler,
    request: Payload,
    *,
    operation_id: str,
    digest: str,
    is_admin: bool,
    heard: Callable[[], None],
) -> bool:
    """Accept a request once, however often it is sent; False when it must be dropped.

    ``heard`` is called after the commit and before the messages are published. Any later, a worker
    may have stored the result already, which must not be overwritten.

    Raises :class:`~worker.errors.Refused` without changing anything.
    """
    acceptance = _commit(
        runtime, pools, verb, handler, request, operation_id, digest, is_admin=is_admin
    )
    if acceptance is None:
        return False
    failpoint("intake.after_commit")
    for ended_id, result, error in acceptance.ended:
        # Requests with other ids may wait for the result of an operation that was superseded.
        superseded = ended_id != operation_id
        runtime.deliver(ended_id, result, error, aliased=superseded)
        if superseded:
            runtime.heartbeat.count(f"operations_ended_total:{OperationState.SUPERSEDED}")
    heard()
    runtime.publish_all(acceptance.dispatches)
    failpoint("intake.after_publish")
    return True


def _is_race(error: BaseException) -> bool:
    # Two requests on one object, or the same request twice: a constraint admitted only one.
    return isinstance(error, (AlreadyAccepted, IntegrityError))


@retry(
    retry=retry_if_exception(is_passing),
    stop=stop_after_delay(_OUTAGE_SECONDS),
    wait=wait_random_exponential(multiplier=0.05, max=1.0),
    reraise=True,
)
@retry(
    retry=retry_if_exception(_is_race),
    stop=stop_after_attempt(_ATTEMPTS),
    wait=wait_random(0.0, 0.1),
    reraise=True,
)
def _commit(  # noqa: PLR0917 - the two halves of one function, around tenacity
    runtime: Runtime,
    pools: PoolCache,
    verb: Verb,
    handler: Handler,
    request: Payload,
    operation_id: str,
    digest: str,
    *,
    is_admin: bool,
) -> Acceptance | None:
    with transaction(runtime.engine) as connection:
        acceptance = Acceptance(
            connection,
            runtime.config,
            runtime.sagas,
            pools,
            verb,
            request,
            operation_id,
            digest,
            is_admin,
        )
        known = _known(connection, request, operation_id)
        if known is None:
            _handle(acceptance, handler)
            failpoint("intake.before_commit")
        elif not _repeat(acceptance, known):
            return None
    return acceptance


def _handle(acceptance: Acceptance, handler: Handler) -> None:
    connection, config = acceptance.connection, acceptance.config
    try:
        answer = handler(acceptance)
        if isinstance(answer, Completed):
            accept_completed(connection, config, acceptance.origin, answer)
            acceptance.ended.append((acceptance.operation_id, answer.result, None))
        else:
            acceptance.dispatches += accept(
                connection,
                config,
                acceptance.sagas,
                acceptance.origin,
                answer,
                max_queued=config.engine.max_queued_operations,
            )
    except Refused:
        # The reason may be this very request, if another process has just accepted it.
        if _known(acceptance.connection, acceptance.request, acceptance.operation_id) is not None:
            raise AlreadyAccepted from None
        raise


def is_taken(connection: Connection, request_id: str) -> bool:
    """Tell whether an operation has this id, or has it as an alias."""
    return _KNOWN_BY_ID.first(connection, request=request_id) is not None


def _knowing(*conditions: ColumnElement[bool]) -> Prepared:
    o = operations_table.c
    # Locked, so that it cannot end after its state was read and before an alias is added.
    return Prepared(
        select(o.id, o.project_id, o.payload_digest, o.state, o.result, o.error)
        .where(*conditions)
        .with_for_update(read=True)
    )


_OF_ALIAS = (
    select(operation_aliases.c.operation_id)
    .where(operation_aliases.c.id == bindparam("request"))
    .scalar_subquery()
)
_KNOWN_BY_ID = _knowing(operations_table.c.id.in_([bindparam("request"), _OF_ALIAS]))
_KNOWN_BY_KEY = _knowing(
    operations_table.c.project_id == bindparam("project"),
    operations_table.c.idempotency_key == bindparam("key"),
)


def _known(connection: Connection, request: Payload, operation_id: str) -> Row[Any] | None:
    row = _KNOWN_BY_ID.first(connection, request=operation_id)
    if row is None and request.idempotency_key is not None:
        project_id = request.context.project_id
        row = _KNOWN_BY_KEY.first(connection, project=project_id, key=request.idempotency_key)
    return row


def _repeat(acceptance: Acceptance, known: Row[Any]) -> bool:
    """Answer a repeated request with its operation; False when it must be dropped.

    If the operation has ended, its result is stored again.
    """
    if known.project_id != acceptance.project_id:
        _log.warning(
            "Dropped a request of project %s under the id %s, which belongs to another project.",
            acceptance.project_id,
            acceptance.operation_id,
        )
        return False
    same_id = known.id == acceptance.operation_id
    if known.payload_digest != acceptance.digest:
        if same_id:
            _log.warning("Dropped a different request under the used id %s.", known.id)
            return False
        raise InvalidRequest(
            f"The idempotency key was used for operation {known.id} with another payload; "
            f"use a new key for a new request.",
            object=ObjectKind.OPERATION.ref(known.id),
            field="idempotency_key",
            code=ErrorCode.IDEMPOTENCY_MISMATCH,
        )
    if not same_id:
        _remember_alias(acceptance, known.id)
    if OperationState(known.state).has_ended:
        acceptance.ended.append((acceptance.operation_id, known.result, known.error))
    return True


def _remember_alias(acceptance: Acceptance, operation_id: str) -> None:
    connection = acceptance.connection
    connection.execute(
        insert_into(connection, operation_aliases)
        .values(id=acceptance.operation_id, operation_id=operation_id, created_at=db_now())
        .on_conflict_do_nothing()
    )
