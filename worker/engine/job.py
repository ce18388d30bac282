"""The job that the runner passes to an action: its operation, the runtime and transactions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, Engine

from worker.backends.manager import ShareManager
from worker.config import Config
from worker.db.core.engine import reading, transaction
from worker.db.core.outages import patiently
from worker.db.operations import store as operations
from worker.db.operations.values import Dispatch, Operation
from worker.engine.heartbeat import Heartbeat
from worker.engine.saga import Action, Saga, Sagas, Step, StepCommitted, StepWaiting
from worker.errors import ErrorCode, Fatal
from worker.messaging.broker import UNREACHABLE
from worker.model import OperationState, RequestContext

_log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(slots=True)
class Runtime:
    """The objects that a process needs to run steps; created after the fork."""

    config: Config
    engine: Engine
    sagas: Sagas
    manager: Callable[[str], ShareManager]
    publish: Callable[[Dispatch], None]
    store_result: Callable[[str, Mapping[str, Any] | None, Mapping[str, str] | None], None]
    worker: str
    heartbeat: Heartbeat

    def publish_all(self, dispatches: list[Dispatch]) -> None:
        """Publish committed messages.

        An unreachable broker is logged and not raised: the reconciler publishes the rest again.
        """
        for number, dispatch in enumerate(dispatches):
            try:
                self.publish(dispatch)
            except UNREACHABLE as error:
                left = len(dispatches) - number  # each further try would wait for the same broker
                _log.warning(
                    "Operation %s%s is committed, its message could not be published (%s); "
                    "the reconciler publishes it again.",
                    dispatch.operation_id,
                    f" (and {left - 1} more)" if left > 1 else "",
                    type(error).__name__,
                )
                self.heartbeat.count("publish_failures_total", left)
                return

    def deliver(
        self,
        operation_id: str,
        result: Mapping[str, Any] | None,
        error: Mapping[str, str] | None,
        *,
        aliased: bool = False,
    ) -> None:
        """Store the result of an operation that has ended.

        An unreachable result backend is logged and not raised: the reconciler stores the result
        again. ``aliased`` says that the operation has an idempotency key: repeated requests with
        other ids may wait for the same result.
        """
        others: list[str] = []
        if aliased:
            with reading(self.engine) as connection:
                others = operations.aliases(connection, operation_id)
        try:
            for request_id in (operation_id, *others):
                self.store_result(request_id, result, error)
        except UNREACHABLE as failure:
            _log.warning(
                "The result of operation %s could not be stored (%s); the reconciler tries again.",
                operation_id,
                type(failure).__name__,
            )
        else:
            self.heartbeat.stored(operation_id)


class Outcome(NamedTuple):
    """An operation whose result or error is to be stored."""

    operation_id: str
    state: OperationState
    result: Mapping[str, Any] | None
    error: Mapping[str, str] | None
    aliased: bool
    """Whether the operation has an idempotency key: other ids may wait for the same result."""


@dataclass(slots=True)
class StepTransaction:
    """An open, fenced transaction of an operation.

    ``dispatches`` collects the messages to publish after the commit, ``ended`` the operations that
    this transaction ends. ``result`` is what the producer gets if it ends the operation itself.
    """

    connection: Connection
    operation: Operation
    config: Config
    sagas: Sagas
    dispatches: list[Dispatch] = field(default_factory=list)
    result: dict[str, Any] | None = None
    ended: list[Outcome] = field(default_factory=list)

    @property
    def republish_after(self) -> float:
        """Seconds after which an unclaimed message may count as lost."""
        return self.config.engine.lease

    def wake(
        self, key: str, *, limit: int | None = None, cancel_reason: Mapping[str, str] | None = None
    ) -> int:
        """Resume the steps that wait for ``key``, at most ``limit``; return how many were resumed.

        With ``cancel_reason`` their operations are cancelled for that reason.
        """
        woken = operations.wake(
            self.connection,
            key,
            republish_after=self.republish_after,
            limit=limit,
            cancel_reason=cancel_reason,
        )
        self.dispatches.extend(woken)
        return len(woken)

    def retry_failed(self, resource_kind: str, resource_id: str) -> None:
        """Run failed operations on a deleted object again, so that they find it gone and end."""
        self.dispatches.extend(
            operations.retry_failed(
                self.connection, resource_kind, resource_id, republish_after=self.republish_after
            )
        )


@dataclass(slots=True)
class Job:
    """What an action gets: its operation, its request context, and transactions."""

    runtime: Runtime
    operation: Operation
    saga: Saga
    step: Step
    context: RequestContext
    write_end: Callable[[StepTransaction], None]

    @property
    def following(self) -> tuple[int, Action] | None:
        """The position and action after the current one, in the operation's direction."""
        return self.saga.following(self.operation.task, undoing=self.operation.undoing)

    @property
    def manager(self) -> ShareManager:
        """The manager of the operation's backend."""
        assert self.operation.backend is not None, "a step without a backend has no manager"
        return self.runtime.manager(self.operation.backend)

    def transaction(self, body: Callable[[StepTransaction], T]) -> T:
        """Run a body in a fenced transaction of its own, before or between external calls.

        Returns what the body returns. If that is a :class:`StepWaiting` or :class:`StepCommitted`,
        it is written in the same transaction, and the action must return it. The body runs again
        when the transaction loses a race or the database is briefly unavailable, so it must change
        nothing but the transaction.

        The fence is checked last. Every transaction locks the object first and its operation
        second, so no two of them deadlock; and a lease that this process still holds at the end was
        held throughout.

        Raises :class:`~worker.errors.LeaseLost` when another worker has claimed the step, and
        :class:`~worker.errors.Fatal` when the operation was cancelled or has waited for too long.
        """
        for attempt in patiently():
            with attempt, transaction(self.runtime.engine) as connection:
                tx = StepTransaction(
                    connection, self.operation, self.runtime.config, self.runtime.sagas
                )
                result = body(tx)
                if isinstance(result, StepWaiting):
                    self._write_wait(tx, result)
                elif isinstance(result, StepCommitted):
                    self.write_end(tx)
                else:
                    operations.hold(connection, self.operation)
        if not isinstance(result, StepCommitted):  # the runner announces the end of a step
            self.runtime.publish_all(tx.dispatches)
        return result

    def _write_wait(self, tx: StepTransaction, wait: StepWaiting) -> None:
        check_wait_limit(self.operation, self.runtime.config, wait.message)
        operations.wait(
            tx.connection, self.operation, seconds=wait.recheck, waits_for=wait.waits_for
        )

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a connection for reading only."""
        with reading(self.runtime.engine) as connection:
            yield connection


def check_wait_limit(
    operation: Operation, config: Config, message: str, *, at_least: float = 0.0
) -> None:
    """Raise :class:`~worker.errors.Fatal` when a step has waited for as long as it may."""
    since = operation.waiting_since
    limit = max(config.engine.wait_limit, at_least)
    if since is not None and operation.claimed_at - since > limit:
        raise Fatal(
            f"Gave up after waiting for {limit:.0f} s. {message}",
            object=f"{operation.resource_kind} {operation.resource_id}",
            code=ErrorCode.WAITED_TOO_LONG,
        )


def write(
    job: Job,
    body: Callable[[StepTransaction], None],
    begin: Callable[[Engine], AbstractContextManager[Connection]] = transaction,
) -> StepTransaction:
    """Run ``body`` in the transaction that ends an attempt; its statements check the fence.

    While the database is unavailable this retries for some seconds, because the step has already
    changed external systems. After that it raises the database's error, and the reconciler runs the
    step again when its lease has run out.
    """
    for attempt in patiently():
        with attempt, begin(job.runtime.engine) as connection:
            tx = StepTransaction(connection, job.operation, job.runtime.config, job.runtime.sagas)
            body(tx)
    return tx
