"""Publish the chain of an operation's remaining steps to its backend's queue.

Each step is a task with its own message, which Celery publishes when the previous task has ended.
A message carries the operation's id and a dispatch number, nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from celery import Celery, chain

from worker.db.operations.values import Dispatch
from worker.engine.saga import Sagas
from worker.messaging.broker import Priorities, priorities

PREFIX = "sharewright."
_log = logging.getLogger(__name__)


def publisher(app: Celery, sagas: Sagas) -> Callable[[Dispatch], None]:
    """Return the function that publishes an operation's chain.

    A step that this release does not know is logged and not published. It stays queued in the
    database, and the reconciler of a newer release publishes it. Raising an error here would hold
    up the other operations of a batch.
    """
    levels: Priorities = priorities(app.conf.broker_url)

    def publish(dispatch: Dispatch) -> None:
        saga = sagas.find(dispatch.saga, dispatch.saga_version)
        actions = saga.chain(dispatch.task, undoing=dispatch.undoing) if saga else ()
        if not actions:
            _log.warning(
                "Operation %s is not published: this release does not know step %s of saga %s, "
                "version %d. A process of a newer release has to take it.",
                dispatch.operation_id,
                dispatch.task,
                dispatch.saga,
                dispatch.saga_version,
            )
            return
        # Operations that have begun go first; otherwise a backlog would run all first steps first.
        begun = dispatch.position > 0 or dispatch.undoing
        links = [
            app.signature(
                PREFIX + action.name,
                args=(dispatch.operation_id, dispatch.dispatch),
                immutable=True,
                queue=dispatch.queue,
                priority=levels.next_step if begun or number else levels.first_step,
            )
            for number, action in enumerate(actions)
        ]
        task = links[0] if len(links) == 1 else chain(*links, app=app)
        task.apply_async(root_id=dispatch.operation_id, retry=False)

    return publish
