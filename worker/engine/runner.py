"""Run a step: claim it, run its action, commit the outcome; handle failures, waits, lost leases.

A message carries an operation's id and a dispatch number. The worker that receives it claims the
step, works on external systems, and writes the step, the object and the next deadline in one
transaction that checks the claim's fence. :func:`run` returns whether Celery should publish the
next link of the chain.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.config import Config
from worker.db.core.engine import reading, statement, transaction
from worker.db.core.outages import is_passing, patiently
from worker.db.operations import store as operations
from worker.db.operations.values import Operation, cancelled
from worker.db.share_servers import store as servers
from worker.engine.heartbeat import Lease
from worker.engine.job import (
    Job,
    Outcome,
    Runtime,
    StepTransaction,
    check_wait_limit,
    write,
)
from worker.engine.saga import Action, OnCommit, StepCommitted, StepWaiting, Unsettled
from worker.errors import (
    ConfigurationError,
    ErrorCode,
    Fatal,
    LeaseLost,
    NotReady,
    Retryable,
    StepError,
)
from worker.failpoints import failpoint
from worker.logs import about
from worker.model import OperationState, Phase, RequestContext

_log = logging.getLogger(__name__)

OUTAGE_SECONDS = 1.0
"""Seconds that a step waits after a brief database outage."""
PARKED_SECONDS = 5.0
"""Seconds after which a step that this release does not know is published again."""


@dataclass(frozen=True, slots=True)
class StepFailed:
    """The result of a failed attempt; false in a condition, as the next link must not be published.

    The failure is committed already: the step is retried or the operation is compensated.
    """

    message: str

    def __bool__(self) -> bool:
        return False


class AttemptFailed(Exception):
    """The exception of a failed attempt, raised so that Celery's events and Flower show it."""


def run(runtime: Runtime, action: Action, operation_id: str, number: int) -> bool | StepFailed:
    """Run one action for one message; return whether to publish the chain's next link."""
    before = time.monotonic()
    operation = _claim(runtime, action, operation_id, number)
    if operation is None:
        return _unclaimed(runtime, action, operation_id, number)
    with (
        about(operation=operation.id, request=operation.request_id, project=operation.project_id),
        runtime.heartbeat.holding(operation.id, operation.fence, before, action.timeout) as lease,
    ):
        try:
            job = _job(runtime, action, operation, lease)
            return _park(runtime, operation) if job is None else _run_patiently(job, action)
        except LeaseLost as lost:
            _log.warning("%s of operation %s stops: %s", action.name, operation_id, lost.message)
            runtime.heartbeat.count(f"steps_total:{action.name}:lease_lost")
            return False


def _claim(runtime: Runtime, action: Action, operation_id: str, number: int) -> Operation | None:
    for attempt in patiently():
        with attempt, statement(runtime.engine) as connection:
            return operations.claim(
                connection,
                operation_id,
                number,
                action.name,
                worker=runtime.worker,
                lease=runtime.config.engine.lease,
            )
    raise AssertionError("the last attempt returns or raises")


def _run_patiently(job: Job, action: Action) -> bool | StepFailed:
    """Run a claimed step; after a brief database outage, publish it again.

    Such a run does not count as an attempt. If the database does not accept that either, the lease
    runs out and the reconciler publishes the step again.
    """
    try:
        return _run_claimed(job, action)
    except Exception as error:
        if not is_passing(error):
            raise
        _log.warning(
            "%s of operation %s begins again: the database did not serve it (%s).",
            action.name,
            job.operation.id,
            type(getattr(error, "orig", error)).__name__,
        )
        outage = NotReady("The database did not serve this step.", retry_after=OUTAGE_SECONDS)
        return _wait(job, action, outage)


def _unclaimed(runtime: Runtime, action: Action, operation_id: str, number: int) -> bool:
    """Handle a message whose step could not be claimed.

    Return True only if that step is committed and the next message was never published.
    """
    with reading(runtime.engine) as connection:
        operation = operations.find(connection, operation_id)
    if operation is None:
        _log.warning(
            "%s: there is no operation %s; the message ends here.", action.name, operation_id
        )
        runtime.heartbeat.count("unknown_operations_total")
        return False
    runtime.heartbeat.count(f"steps_total:{action.name}:duplicate")
    if operation.dispatch != number or operation.phase is not Phase.QUEUED:
        return False
    # The worker died between the commit and the publication of the next link: publish it now.
    saga = runtime.sagas.find(operation.saga, operation.saga_version)
    previous = saga.previous(operation.task, undoing=operation.undoing) if saga else None
    return previous is not None and previous.name == action.name


def _job(runtime: Runtime, action: Action, operation: Operation, lease: Lease) -> Job | None:
    """Return the action's job; None when this release does not know the step."""
    saga = runtime.sagas.find(operation.saga, operation.saga_version)
    step = saga.step(operation.task, undoing=operation.undoing) if saga else None
    if saga is None or step is None:
        return None
    job = Job(
        runtime,
        operation,
        saga,
        step,
        RequestContext(
            project_id=operation.project_id,
            user_id=operation.user_id,
            request_id=operation.request_id,
            operation_id=operation.id,
            guard=lease.guard,
        ),
        write_end=lambda tx: _write_action_end(job, action, tx),
    )
    return job


def _run_claimed(job: Job, action: Action) -> bool | StepFailed:
    runtime, operation = job.runtime, job.operation
    try:
        _check_cancelled(operation)
        _check_crashes(runtime.config, operation)
        failpoint(f"{action.name}.before")
        result = action.run(job)
        if not isinstance(result, StepCommitted | StepWaiting):
            failpoint(f"{action.name}.after_effect")
    except NotReady as wait:
        return _wait(job, action, wait)
    except StepError as error:
        return _failed(job, action, error)
    except ConfigurationError as error:
        return _failed(job, action, Fatal(error.message, object=error.object, code=error.code))
    except LeaseLost:
        raise
    except Exception as error:
        if is_passing(error):
            raise
        _log.exception("%s of operation %s raised an unexpected error", action.name, operation.id)
        defect = Retryable(
            f"{action.name} met a defect ({type(error).__name__}); see the worker's log.",
            code=ErrorCode.INTERNAL,
        )
        return _failed(job, action, defect)
    if isinstance(result, StepCommitted):
        return _announce_end(job, action, result.tx)
    if isinstance(result, StepWaiting):
        runtime.heartbeat.count(f"steps_total:{action.name}:waited")
        return False
    return _finish(job, action, result)


def _park(runtime: Runtime, operation: Operation) -> bool:
    """Leave a step that this release does not know to a worker of a newer release."""
    _log.warning(
        "Operation %s is parked: this release does not know step %s of saga %s, version %d. "
        "A worker of a newer release has to take it.",
        operation.id,
        operation.task,
        operation.saga,
        operation.saga_version,
    )
    with transaction(runtime.engine) as connection:
        operations.park(connection, operation, seconds=PARKED_SECONDS)
    runtime.heartbeat.count(f"steps_total:{operation.task}:parked")
    return False


def _check_cancelled(operation: Operation) -> None:
    if operation.cancel_reason and not operation.undoing:
        raise cancelled(operation.cancel_reason)


def _check_crashes(config: Config, operation: Operation) -> None:
    """Fail the step when it was claimed more often than allowed without reporting an end.

    Claims are counted because a step that crashes its worker never reports an error.
    """
    if _has_crashed(config, operation):
        raise Fatal(
            f"{operation.task} of {operation.resource_kind} {operation.resource_id} was begun "
            f"{config.engine.max_crashes} times and never came to an end; the workers' logs say "
            f"why.",
            object=f"{operation.resource_kind} {operation.resource_id}",
            code=ErrorCode.ATTEMPTS_EXHAUSTED,
        )


def _has_crashed(config: Config, operation: Operation) -> bool:
    crashes = operation.attempts - operation.failures - 1  # minus the current claim
    lasting = operation.state is OperationState.COMPENSATION_FAILED
    return crashes >= config.engine.max_crashes and not lasting


def _is_retried(job: Job) -> bool:
    """Return whether to retry a step that has just failed: it has not been failing for too long."""
    operation, engine = job.operation, job.runtime.config.engine
    if _has_crashed(job.runtime.config, operation):
        return False
    forward_only = operation.undoing or job.step.compensation is None
    limit = engine.undo_retry_time if forward_only else engine.retry_time
    if operation.failing_since is None:
        return limit > 0
    return operation.claimed_at - operation.failing_since < limit


def _wait(job: Job, action: Action, wait: NotReady) -> bool | StepFailed:
    operation, runtime = job.operation, job.runtime
    try:
        check_wait_limit(operation, runtime.config, wait.message, at_least=wait.limit)
    except Fatal as error:
        error.share_server_id = wait.share_server_id
        return _failed(job, action, error)

    def body(tx: StepTransaction) -> None:
        _remember_server(tx, wait)
        operations.wait(
            tx.connection, operation, seconds=wait.retry_after, waits_for=wait.waits_for
        )

    write(job, body)
    runtime.heartbeat.count(f"steps_total:{action.name}:waited")
    return False


def _finish(job: Job, action: Action, commit: OnCommit | None) -> bool | StepFailed:
    """Commit the step, the object and the next deadline; end the operation after its last step."""
    alone = commit is None and job.following is not None

    def body(tx: StepTransaction) -> None:
        if commit is not None:
            commit(tx)
        _write_end(job, tx)

    failpoint(f"{action.name}.before_commit")
    try:
        tx = write(job, body, statement if alone else transaction)
    except StepError as error:  # the operation was cancelled, or the object was changed, meanwhile
        return _failed(job, action, error)
    return _announce_end(job, action, tx)


def _write_action_end(job: Job, action: Action, tx: StepTransaction) -> None:
    failpoint(f"{action.name}.after_effect")
    failpoint(f"{action.name}.before_commit")
    _write_end(job, tx)


def _write_end(job: Job, tx: StepTransaction) -> None:
    """Advance the operation to its next step, in one statement, or end it after the last."""
    following = job.following
    if following is None:
        _end(job, tx)
        return
    operations.advance(
        tx.connection,
        tx.operation,
        task=following[1].name,
        position=following[0],
        republish_after=tx.republish_after,
    )


def _announce_end(job: Job, action: Action, tx: StepTransaction) -> bool:
    """Store results and publish messages of a committed step; return whether a step follows."""
    runtime = job.runtime
    runtime.heartbeat.count(f"steps_total:{action.name}:done")
    _log.info("%s is done", action.name)
    failpoint(f"{action.name}.after_commit")
    _announce(runtime, tx)
    failpoint(f"{action.name}.after_publish")
    return job.following is not None


def _end(job: Job, tx: StepTransaction) -> None:
    operation, saga = job.operation, job.saga
    # A step that is retried until it succeeds has succeeded, whatever error it met before.
    done_at_last = job.step.keeps_trying and not operation.undoing
    error = None if done_at_last else operation.error
    state = OperationState.SUCCEEDED
    if error is not None:
        cancelled = error["code"] == ErrorCode.CANCELLED
        state = OperationState.CANCELLED if cancelled else OperationState.FAILED
        if saga.failed is not None and operation.undoing:
            saga.failed(tx, dict(error), True)
    close(tx, state, error)


def close(
    tx: StepTransaction,
    state: OperationState,
    error: Mapping[str, str] | None,
    *,
    outcome: str = "done",
    message: str = "",
) -> None:
    """End the operation in this transaction, and start the next one in its queue.

    ``outcome`` and ``message`` describe its last action, for the timeline.
    """
    operation = tx.operation
    operations.end(
        tx.connection,
        operation,
        state,
        result=tx.result,
        error=error,
        store_again=tx.republish_after,
        outcome=outcome,
        message=message,
    )
    _promote(tx)
    tx.ended.append(_outcome(operation, state, tx.result, error))


def _promote(tx: StepTransaction) -> None:
    operation = tx.operation
    following = operations.promote(
        tx.connection,
        operation.resource_kind,
        operation.resource_id,
        republish_after=tx.republish_after,
    )
    tx.dispatches.extend(following)


def _announce(runtime: Runtime, tx: StepTransaction) -> None:
    """Store the results, which producers wait for, and then publish the messages."""
    for one in tx.ended:
        runtime.deliver(one.operation_id, one.result, one.error, aliased=one.aliased)
        if one.state is not OperationState.COMPENSATION_FAILED:  # which is still retried
            runtime.heartbeat.count(f"operations_ended_total:{one.state}")
    runtime.publish_all(tx.dispatches)


def _failed(job: Job, action: Action, error: StepError) -> bool | StepFailed:
    """Retry a failed step, start the compensation, or write the failure of a forward-only step."""
    operation, runtime = job.operation, job.runtime
    step = job.step
    engine = runtime.config.engine
    if not error.object:
        error.object = f"{operation.resource_kind} {operation.resource_id}"
    failpoint(f"{action.name}.failed")
    _log.info("%s of operation %s failed: %s", action.name, operation.id, error.message)
    if operation.state is OperationState.COMPENSATION_FAILED:
        _try_later(job, error, engine.failed_undo_pause)
        runtime.heartbeat.count(f"steps_total:{action.name}:failed")
        return StepFailed(error.message)
    hopeless = isinstance(error, Fatal) and not operation.undoing
    if not hopeless and _is_retried(job):
        _try_later(job, error, _pause(operation.failures, runtime.config))
        runtime.heartbeat.count(f"steps_total:{action.name}:retried")
        return StepFailed(error.message)
    runtime.heartbeat.count(f"steps_total:{action.name}:failed")
    if operation.undoing or step.compensation is None:
        _failed_forward(job, action, error)
    else:
        _start_compensation(job, step.compensation, error)
    return StepFailed(error.message)


def _try_later(job: Job, error: StepError, pause: float) -> None:
    def body(tx: StepTransaction) -> None:
        _remember_server(tx, error)
        operations.record(tx.connection, job.operation, "retry", error.message)
        operations.retry(tx.connection, job.operation, seconds=pause)

    write(job, body)


def _start_compensation(job: Job, compensation: Action, error: StepError) -> None:
    """Compensate from the failed step backwards; it may have done part of its work."""

    def body(tx: StepTransaction) -> None:
        _remember_server(tx, error)
        operations.record(tx.connection, job.operation, "failed", error.message)
        dispatch = operations.start_compensation(
            tx.connection,
            job.operation,
            task=compensation.name,
            error=error.to_json(),
            republish_after=tx.republish_after,
        )
        tx.dispatches.append(dispatch)

    tx = write(job, body)
    failpoint(f"{compensation.name}.compensation_started")
    _announce(job.runtime, tx)


def _failed_forward(job: Job, action: Action, error: StepError) -> None:
    """Write the failure of a compensation or of a forward-only step to the object.

    Compensations, and steps that keep trying, are then retried at long intervals; any other step
    ends its operation.
    """
    operation, runtime, saga, step = job.operation, job.runtime, job.saga, job.step
    meaning = None if operation.undoing else _on_failure(job, error)
    commit = meaning.commit if isinstance(meaning, Unsettled) else meaning
    keeps_trying = operation.undoing or step.keeps_trying or isinstance(meaning, Unsettled)
    document = dict(operation.error or error.to_json())
    if operation.undoing:
        document["message"] += f" Undoing it failed as well, at {action.name}: {error.message}"

    def body(tx: StepTransaction) -> None:
        if commit is not None:
            commit(tx)
        if operation.undoing and saga.failed is not None:
            saga.failed(tx, document, False)
        if keeps_trying:
            operations.record(tx.connection, operation, "failed", error.message)
            give_up(tx, document)
        else:
            failed, message = OperationState.FAILED, error.message
            close(tx, failed, document, outcome="failed", message=message)

    tx = write(job, body)
    if keeps_trying:
        runtime.heartbeat.count("compensations_failed_total")
    _announce(runtime, tx)


def _on_failure(job: Job, error: StepError) -> OnCommit | Unsettled | None:
    """Ask the step what its failure changes on the object; None when it cannot tell."""
    step = job.step
    if step.on_failure is None:
        return None
    try:
        return step.on_failure(job, error)
    except StepError as second:
        _log.warning(
            "After %s of operation %s failed, the state of its object could not be read: %s",
            step.do.name,
            job.operation.id,
            second.message,
        )
        return None


def give_up(tx: StepTransaction, error: Mapping[str, str]) -> None:
    """Report the error and start the next operation on the object; the action is still retried.

    The operation becomes ``compensation_failed``. Its action runs again every
    ``engine.failed_undo_pause`` seconds.
    """
    operation = tx.operation
    operations.give_up(
        tx.connection,
        operation,
        error=error,
        pause=tx.config.engine.failed_undo_pause,
        store_again=tx.republish_after,
    )
    _promote(tx)
    tx.ended.append(_outcome(operation, OperationState.COMPENSATION_FAILED, None, error))


def _outcome(
    operation: Operation,
    state: OperationState,
    result: Mapping[str, Any] | None,
    error: Mapping[str, str] | None,
) -> Outcome:
    return Outcome(operation.id, state, result, error, operation.idempotency_key is not None)


def _remember_server(tx: StepTransaction, end: StepError | NotReady) -> None:
    """Store the server's external id of a failure or wait, so that the compensation finds it."""
    if end.share_server_id is not None:
        servers.remember(tx.connection, tx.operation.id, end.share_server_id)


def _pause(failures: int, config: Config) -> float:
    pause = config.engine.retry_pause * 2.0 ** min(failures, 30)
    return min(pause, config.engine.retry_pause_max) * (0.75 + random.random() * 0.5)  # noqa: S311 - jitter
