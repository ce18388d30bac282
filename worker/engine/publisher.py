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

    def publish(bell: Dispatch) -> None:
        saga = sagas[bell.saga]
        acts = saga.undoing(bell.position) if bell.undoing else saga.doing(bell.position)
        # What was begun goes ahead of what was not: a backlog would otherwise be all begun.
        begun = bell.position > 0 or bell.undoing
        links = [
            app.signature(
                PREFIX + act.name,
                args=(bell.operation_id, bell.dispatch),
                immutable=True,
                queue=bell.queue,
                priority=levels.next_step if begun or number else levels.first_step,
            )
            for number, act in enumerate(acts)
        ]
        task = links[0] if len(links) == 1 else chain(*links, app=app)
        task.apply_async(root_id=bell.operation_id, retry=False)

    return publish
