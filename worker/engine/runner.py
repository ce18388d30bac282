"""How a step is run: claim, act, finish; and what a failure, a wait or a lost lease come to.

A message carries an operation's id and a dispatch number. Whoever receives it claims the step,
acts outside, and writes step, object and next deadline in one transaction that is checked on the
claim's fence. :func:`run` answers whether Celery should publish the next link of the chain.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from worker.config import Config
from worker.db.core.engine import is_passing, reading, statement, transaction
from worker.db.operations import store as journal
from worker.db.operations.values import Operation, condemned
from worker.db.share_servers import store as servers
from worker.engine.heartbeat import Lease
from worker.engine.job import (
    Finished,
    Job,
    Outcome,
    Parked,
    Runtime,
    Writing,
    check_patience,
    write,
)
from worker.engine.saga import Act, Commit, Saga, Step
from worker.errors import ErrorCode, Fatal, LeaseLost, NotReady, Retryable, StepError
from worker.failpoints import failpoint
from worker.logs import about
from worker.model import OperationState, Phase, RequestContext

_log = logging.getLogger(__name__)

PARKED_SECONDS = 30.0
"""How long a step waits that this worker's version does not know."""


def run(runtime: Runtime, act: Act, operation_id: str, number: int) -> bool:
    """Do one act for one message; True when the chain's next link is due."""
    before = time.monotonic()
    with statement(runtime.engine) as connection:
        operation = journal.claim(
            connection,
            operation_id,
            number,
            act.name,
            worker=runtime.worker,
            lease=runtime.config.engine.lease,
        )
    if operation is None:
        return _unclaimed(runtime, act, operation_id, number)
    with (
        about(operation=operation.id, request=operation.request_id, project=operation.project_id),
        runtime.keeper.holding(operation.id, operation.fence, before, act.timeout) as lease,
    ):
        try:
            return _run_claimed(runtime, act, operation, lease)
        except LeaseLost as lost:
            _log.warning("%s of operation %s stops: %s", act.name, operation_id, lost.message)
            runtime.keeper.count(f"steps_total:{act.name}:lease_lost")
            return False


def _unclaimed(runtime: Runtime, act: Act, operation_id: str, number: int) -> bool:
    """Why a message found nothing to claim; only a finished step's goes on."""
    with reading(runtime.engine) as connection:
        operation = journal.find(connection, operation_id)
    if operation is None:
        _log.warning("%s: there is no operation %s; the message ends here.", act.name, operation_id)
        runtime.keeper.count("unknown_operations_total")
        return False
    runtime.keeper.count(f"steps_total:{act.name}:duplicate")
    if operation.dispatch != number or operation.phase is not Phase.QUEUED:
        return False
    # The worker died after the finish and before the next link was published: go on from here.
    saga = runtime.sagas.get(operation.saga)
    previous = _previous(saga, operation) if saga else None
    return previous is not None and previous.name == act.name


def _previous(saga: Saga, operation: Operation) -> Act | None:
    if operation.undoing:
        later = [step.undo for step in saga.steps[operation.position + 1 :] if step.undo]
        return later[0] if later else None
    return saga.steps[operation.position - 1].do if operation.position else None


def _run_claimed(runtime: Runtime, act: Act, operation: Operation, lease: Lease) -> bool:
    job = Job(
        runtime,
        operation,
        RequestContext(
            project_id=operation.project_id,
            user_id=operation.user_id,
            request_id=operation.request_id,
            operation_id=operation.id,
            guard=lease.guard,
        ),
        write_end=partial(_write_act_end, runtime, act),
    )
    try:
        step = _step(runtime, operation)
        _check_verdict(operation)
        _check_attempts(runtime.config, operation, step)
        failpoint(f"{act.name}.before")
        commit = act.run(job)
        failpoint(f"{act.name}.after_effect")
    except Finished as finished:
        return _finished(runtime, act, finished.writing)
    except Parked:
        runtime.keeper.count(f"steps_total:{act.name}:waited")
        return False
    except NotReady as wait:
        return _wait(job, act, wait)
    except StepError as error:
        return _failed(job, act, error)
    except LeaseLost:
        raise
    except Exception as error:
        if is_passing(error):
            raise  # the database is away: the lease runs out, and the step is taken up again
        _log.exception("%s of operation %s raised what it should not", act.name, operation.id)
        defect = Retryable(
            f"{act.name} met a defect ({type(error).__name__}); the worker's log has it in full.",
            code=ErrorCode.INTERNAL,
        )
        return _failed(job, act, defect)
    return _finish(job, act, commit)


def _step(runtime: Runtime, operation: Operation) -> Step:
    saga = runtime.sagas.get(operation.saga)
    if saga is None or saga.version < operation.saga_version:
        raise NotReady(
            f"This worker does not know version {operation.saga_version} of "
            f"{operation.saga}; a newer one has to take it.",
            retry_after=PARKED_SECONDS,
        )
    return saga.steps[operation.position]


def _check_verdict(operation: Operation) -> None:
    if operation.verdict and not operation.undoing:
        raise condemned(operation.verdict)


def _attempts(config: Config, operation: Operation, step: Step) -> int:
    forward = operation.undoing or step.undo is None
    return config.engine.undo_attempts if forward else config.engine.attempts


def _check_attempts(config: Config, operation: Operation, step: Step) -> None:
    """A step that kills its worker never reports a failure: its claims count all the same."""
    allowed = _attempts(config, operation, step)
    if operation.attempts > allowed and operation.state is not OperationState.COMPENSATION_FAILED:
        raise Fatal(
            f"{operation.task} of {operation.resource_kind} {operation.resource_id} was begun "
            f"{allowed} times and never came to an end; the workers' logs say why.",
            object=f"{operation.resource_kind} {operation.resource_id}",
            code=ErrorCode.ATTEMPTS_EXHAUSTED,
        )


def _wait(job: Job, act: Act, wait: NotReady) -> bool:
    operation, runtime = job.operation, job.runtime
    try:
        check_patience(operation, runtime.config, wait.message)
    except Fatal as error:
        error.share_server_id = wait.share_server_id
        return _failed(job, act, error)

    def body(writing: Writing) -> None:
        _remember_server(writing, wait)
        journal.wait(
            writing.connection, operation, seconds=wait.retry_after, waits_for=wait.waits_for
        )

    write(job, body)
    runtime.keeper.count(f"steps_total:{act.name}:waited")
    return False


def _finish(job: Job, act: Act, commit: Commit | None) -> bool:
    """Write step, object and next deadline; end the operation after its last step."""
    runtime = job.runtime
    alone = commit is None and _following(runtime, job.operation) is not None

    def body(writing: Writing) -> None:
        if commit is not None:
            commit(writing)
        _write_end(runtime, writing)

    failpoint(f"{act.name}.before_commit")
    try:
        writing = write(job, body, statement if alone else transaction)
    except StepError as error:  # cancelled meanwhile, or the object moved on
        return _failed(job, act, error)
    return _finished(runtime, act, writing)


def _write_act_end(runtime: Runtime, act: Act, writing: Writing) -> None:
    failpoint(f"{act.name}.after_effect")
    failpoint(f"{act.name}.before_commit")
    _write_end(runtime, writing)


def _write_end(runtime: Runtime, writing: Writing) -> None:
    """The step is done: on to the next one, or the operation ends. One statement in the former."""
    operation = writing.operation
    following = _following(runtime, operation)
    if following is None:
        _end(writing, runtime.sagas[operation.saga])
        return
    journal.advance(
        writing.connection,
        operation,
        task=following[1].name,
        position=following[0],
        patience=writing.patience,
    )


def _finished(runtime: Runtime, act: Act, writing: Writing) -> bool:
    """The step's end is committed; whether another follows."""
    runtime.keeper.count(f"steps_total:{act.name}:done")
    failpoint(f"{act.name}.after_commit")
    _announce(runtime, writing)
    failpoint(f"{act.name}.after_publish")
    return _following(runtime, writing.operation) is not None


def _following(runtime: Runtime, operation: Operation) -> tuple[int, Act] | None:
    """The position and act after the one in hand, in the direction that the operation goes."""
    saga = runtime.sagas[operation.saga]
    if not operation.undoing:
        position = operation.position + 1
        return (position, saga.steps[position].do) if position < len(saga.steps) else None
    for position in range(operation.position - 1, -1, -1):
        undo = saga.steps[position].undo
        if undo is not None:
            return position, undo
    return None


def _end(writing: Writing, saga: Saga) -> None:
    operation = writing.operation
    error = operation.error if operation.undoing else None
    state = OperationState.SUCCEEDED
    if error is not None:
        cancelled = error["code"] == ErrorCode.CANCELLED
        state = OperationState.CANCELLED if cancelled else OperationState.FAILED
        if saga.failed is not None:
            saga.failed(writing, dict(error), True)
    close(writing, state, error)


def close(
    writing: Writing,
    state: OperationState,
    error: Mapping[str, str] | None,
    *,
    outcome: str = "done",
    message: str = "",
) -> None:
    """End the operation in this transaction, and start what is queued behind it.

    ``outcome`` and ``message`` are of its last act, for the timeline.
    """
    operation = writing.operation
    journal.end(
        writing.connection,
        operation,
        state,
        result=writing.result,
        error=error,
        store_again=writing.patience,
        outcome=outcome,
        message=message,
    )
    _promote(writing)
    writing.ended.append(_outcome(operation, writing.result, error))


def _promote(writing: Writing) -> None:
    operation = writing.operation
    following = journal.promote(
        writing.connection,
        operation.resource_kind,
        operation.resource_id,
        patience=writing.patience,
    )
    writing.bells.extend(following)


def _announce(runtime: Runtime, writing: Writing) -> None:
    """After the commit: results first, for somebody waits for them, then the doorbells."""
    for operation_id, result, error, aliased in writing.ended:
        runtime.deliver(operation_id, result, error, aliased=aliased)
    runtime.ring(writing.bells)


def _failed(job: Job, act: Act, error: StepError) -> bool:
    """Another attempt later, or undo, or (forward-only) what the step says of its failure."""
    operation, runtime = job.operation, job.runtime
    saga = runtime.sagas[operation.saga]
    step = saga.steps[operation.position]
    engine = runtime.config.engine
    failpoint(f"{act.name}.failed")
    _log.info("%s of operation %s failed: %s", act.name, operation.id, error.message)
    if operation.state is OperationState.COMPENSATION_FAILED:
        _try_later(job, error, engine.failed_undo_pause)
        runtime.keeper.count(f"steps_total:{act.name}:failed")
        return False
    exhausted = operation.attempts >= _attempts(runtime.config, operation, step)
    hopeless = isinstance(error, Fatal) and not operation.undoing
    if not exhausted and not hopeless:
        _try_later(job, error, _pause(operation.attempts, runtime.config))
        runtime.keeper.count(f"steps_total:{act.name}:retried")
        return False
    runtime.keeper.count(f"steps_total:{act.name}:failed")
    if operation.undoing or step.undo is None:
        _failed_forward(job, act, step, error)
    else:
        _turn_round(job, step.undo, error)
    return False


def _try_later(job: Job, error: StepError, pause: float) -> None:
    def body(writing: Writing) -> None:
        _remember_server(writing, error)
        journal.record(writing.connection, job.operation, "retry", error.message)
        journal.retry(writing.connection, job.operation, seconds=pause)

    write(job, body)


def _turn_round(job: Job, undo: Act, error: StepError) -> None:
    """Undo from the failed step backwards: it may have got half-way."""

    def body(writing: Writing) -> None:
        _remember_server(writing, error)
        journal.record(writing.connection, job.operation, "failed", error.message)
        bell = journal.begin_undo(
            writing.connection,
            job.operation,
            task=undo.name,
            error=error.to_json(),
            patience=writing.patience,
        )
        writing.bells.append(bell)

    writing = write(job, body)
    failpoint(f"{undo.name}.turned_round")
    _announce(job.runtime, writing)


def _failed_forward(job: Job, act: Act, step: Step, error: StepError) -> None:
    """There is no way back: the object shows it, and what destroys is tried on, slowly."""
    operation, runtime = job.operation, job.runtime
    saga = runtime.sagas[operation.saga]
    commit = None if operation.undoing else _on_failure(job, step, error)
    document = dict(operation.error or error.to_json())
    if operation.undoing:
        document["message"] += f" Undoing it failed as well, at {act.name}: {error.message}"

    def body(writing: Writing) -> None:
        if commit is not None:
            commit(writing)
        if operation.undoing and saga.failed is not None:
            saga.failed(writing, document, False)
        if operation.undoing or step.keeps_trying:
            journal.record(writing.connection, operation, "failed", error.message)
            give_up(writing, document)
        else:
            failed, message = OperationState.FAILED, error.message
            close(writing, failed, document, outcome="failed", message=message)

    writing = write(job, body)
    if operation.undoing or step.keeps_trying:
        runtime.keeper.count("compensations_failed_total")
    _announce(runtime, writing)


def _on_failure(job: Job, step: Step, error: StepError) -> Commit | None:
    """What the failure means for the object, if there still is one."""
    if step.on_failure is None:
        return None
    try:
        return step.on_failure(job, error)
    except StepError as second:
        _log.warning(
            "After %s of operation %s failed, its object could not be looked at: %s",
            step.do.name,
            job.operation.id,
            second.message,
        )
        return None


def give_up(writing: Writing, error: Mapping[str, str]) -> None:
    """Let the object go with its error; the act is still tried, at a slow pace."""
    operation = writing.operation
    journal.give_up(
        writing.connection,
        operation,
        error=error,
        pause=writing.config.engine.failed_undo_pause,
        store_again=writing.patience,
    )
    _promote(writing)
    writing.ended.append(_outcome(operation, None, error))


def _outcome(
    operation: Operation, result: Mapping[str, Any] | None, error: Mapping[str, str] | None
) -> Outcome:
    return operation.id, result, error, operation.idempotency_key is not None


def _remember_server(writing: Writing, end: StepError | NotReady) -> None:
    """Keep the outside id that a failure or a wait carries, so that the undo finds the server."""
    if end.share_server_id is not None:
        servers.remember(writing.connection, writing.operation.id, end.share_server_id)


def _pause(attempts: int, config: Config) -> float:
    pause = config.engine.retry_pause * 2.0 ** (attempts - 1)
    return min(pause, config.engine.retry_pause_max) * (0.75 + random.random() * 0.5)  # noqa: S311 - jitter
