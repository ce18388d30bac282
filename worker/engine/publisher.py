"""Ringing: the chain of an operation's remaining steps goes onto its backend's queue.

Every step is a task of its own with a message of its own, which Celery publishes when the one
before has ended. A message carries the operation's id and a dispatch number, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from celery import Celery, chain

from worker.db.operations.values import Dispatch
from worker.engine.saga import Saga
from worker.messaging.broker import Priorities, priorities

PREFIX = "sharewright."


def publisher(app: Celery, sagas: Mapping[str, Saga]) -> Callable[[Dispatch], None]:
    """Return the function that publishes an operation's chain."""
    levels: Priorities = priorities(app.conf.broker_url)

    def publish(dispatch: Dispatch) -> None:
        saga = sagas[dispatch.saga]
        actions = (
            saga.undoing(dispatch.position) if dispatch.undoing else saga.doing(dispatch.position)
        )
        # What was begun goes ahead of what was not: a backlog would otherwise be all begun.
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
