"""The consumer of our workers: Celery's, which looks at each message before Celery acts on it.

A message that no task can be run for becomes a dead letter, and is acknowledged only when the
dead letter is kept.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any, Final

from celery import Celery
from celery.worker import consumer

from worker.db.dead_letters import DeadLetter
from worker.messaging.broker import our_transport
from worker.messaging.dead_letters import describe_message
from worker.messaging.task_messages import fault, unreadable

RETRY_PAUSE: Final = 5.0
"""Seconds until a dead letter that could not be kept is tried again."""

EVENTS_SECONDS: Final = 0.1
"""Seconds for which task events are gathered: each publication costs as much as a task's own."""

REQUEST_TASKS: Final = "sharewright.request."

log = logging.getLogger(__name__)


KeepDeadLetter = Callable[[DeadLetter], None]
"""Store a dead letter, or raise. The event loop of the worker's main process waits for it, so it
must be quick and have a timeout."""


def install(app: Celery, keep_dead_letter: KeepDeadLetter, max_message_bytes: int) -> None:
    """Make the workers of this app use :class:`Consumer`."""
    app.conf.worker_consumer = functools.partial(
        Consumer, keep_dead_letter=keep_dead_letter, max_message_bytes=max_message_bytes
    )


def _override_headers(message: Any) -> None:
    """Replace the headers of a producer with which Celery would do what we must not.

    A result is stored once, when the operation ends. Celery 5.1 to 5.6 send ``ignore_result:
    false`` with every task, which takes precedence over the task's own setting: each producer
    would be told SUCCESS as soon as its request is taken in. Events show no payload.
    """
    message.headers["ignore_result"] = True
    if str(message.headers["task"]).startswith(REQUEST_TASKS):
        message.headers.update(argsrepr="(payload)", kwargsrepr="{}")


class Consumer(consumer.Consumer):  # type: ignore[misc] # celery ships no types
    """Celery's consumer, which checks each message before Celery acts on it."""

    def __init__(
        self, *args: Any, keep_dead_letter: KeepDeadLetter, max_message_bytes: int, **kwargs: Any
    ) -> None:
        self._keep_dead_letter = keep_dead_letter
        self._max_message_bytes = max_message_bytes
        self._flushed_by = 0.0
        super().__init__(*args, **kwargs)

    def connection_for_read(self, heartbeat: float | None = None) -> Any:
        """Open Celery's connection, through our transport where the broker is Redis."""
        options = our_transport(self.app.conf.broker_read_url or "")
        if self.app.conf.broker_use_ssl:
            options.pop("ssl", None)
        return self.ensure_connected(self.app.connection_for_read(heartbeat=heartbeat, **options))

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        """Return Celery's handler behind the check of each message."""
        handle = super().create_task_handler(*args, **kwargs)

        def on_task_received(message: Any) -> Any:
            reason = fault(message, self.app.tasks, self._max_message_bytes)
            if reason is not None:
                return self._set_aside(message, reason)
            _override_headers(message)
            return handle(message)

        return on_task_received

    def on_send_event_buffered(self) -> None:
        """Send buffered events later: Celery would send them in the event loop's next turn."""
        now = time.monotonic()
        if now >= self._flushed_by:
            self._flushed_by = now + EVENTS_SECONDS
            self.hub.call_later(EVENTS_SECONDS, self._flush_events)

    def on_decode_error(self, message: Any, exc: BaseException) -> None:
        """Keep a message that kombu could not decode."""
        self._set_aside(message, unreadable(exc))

    def on_invalid_task(self, body: Any, message: Any, exc: BaseException) -> None:  # noqa: ARG002 - Celery's own signature
        """Keep a message whose headers Celery rejects although they passed the check."""
        self._set_aside(message, f"it is not a task message: {str(exc)[:200]}")

    def _set_aside(self, message: Any, reason: str) -> None:
        self._keep(message, describe_message(message, reason))

    def _keep(self, message: Any, dead_letter: DeadLetter) -> None:
        try:
            self._keep_dead_letter(dead_letter)
        # Whatever the database meets, the message stays unacknowledged and is tried again; the
        # worker has other work.
        except Exception:
            log.exception(
                "A message of queue %s that no task can be run for could not be set aside; it "
                "stays unacknowledged and is tried again in %g s.",
                dead_letter.queue,
                RETRY_PAUSE,
            )
            self.timer.call_after(RETRY_PAUSE, self._keep, (message, dead_letter))
            return
        log.warning("Set aside a message of queue %s: %s.", dead_letter.queue, dead_letter.reason)
        message.ack_log_error(log, self.connection_errors)
