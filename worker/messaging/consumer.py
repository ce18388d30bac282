"""Consume messages as Celery does, but check each one before Celery handles it.

A message that no task can be run for becomes a dead letter. It is acknowledged only when the dead
letter has been stored, or when its queue has used up its hourly limit of them.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from celery import Celery
from celery.worker import consumer

from worker.db.dead_letters import DeadLetter
from worker.messaging.broker import our_transport
from worker.messaging.dead_letters import describe_message, queue_of
from worker.messaging.task_messages import fault, unreadable

RETRY_PAUSE: Final = 5.0
"""Seconds after which storing a dead letter is tried again."""

EVENTS_SECONDS: Final = 0.1
"""Seconds for which task events are buffered: publishing them costs as much as a task message."""

REQUEST_TASKS: Final = "sharewright.request."

log = logging.getLogger(__name__)


HOUR: Final = 3600.0
COUNT_PAUSE: Final = 5.0
"""Seconds for which dropped messages are counted before their number is stored."""


class DeadLetterStore(Protocol):
    """Stores dead letters.

    The event loop of the worker's main process waits for each call, so a call must be quick and
    have a timeout.
    """

    def keep(self, dead_letter: DeadLetter) -> None:
        """Store a dead letter; any exception means that it was not stored."""

    def count_dropped(self, queue: str, number: int) -> None:
        """Add to the number of dropped messages; any exception means that it was not stored."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest message that a consumer accepts, and its dead letters per hour and queue."""

    max_message_bytes: int
    dead_letters_per_hour: int


class HourlyLimit:
    """Counts the dead letters of each queue within the current hour against a limit."""

    def __init__(self, most: int, now: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._now = now
        self._kept: Counter[str] = Counter()
        self._ends = now() + HOUR

    def allows(self, queue: str) -> bool:
        """Count one dead letter of a queue; return whether it is within the limit."""
        if self._now() >= self._ends:
            self._ends = self._now() + HOUR
            self._kept.clear()
        self._kept[queue] += 1
        if self._kept[queue] == self._most + 1:
            log.warning(
                "%d messages of queue %s that no task can be run for were kept within an hour; "
                "until the next one, more are dropped and only counted.",
                self._most,
                queue,
            )
        return self._kept[queue] <= self._most


def install(app: Celery, store: DeadLetterStore, limits: Limits) -> None:
    """Make the workers of this app use :class:`Consumer`."""
    app.conf.worker_consumer = functools.partial(Consumer, store=store, limits=limits)


def _override_headers(message: Any) -> None:
    """Override headers that would store a result too early or show a payload in events.

    A result is stored once, when the operation ends. Celery 5.1 to 5.6 send ``ignore_result:
    false`` with every task, which takes precedence over the task's own setting: each producer
    would get SUCCESS as soon as its request is accepted.
    """
    message.headers["ignore_result"] = True
    if str(message.headers["task"]).startswith(REQUEST_TASKS):
        message.headers.update(argsrepr="(payload)", kwargsrepr="{}")


def note_queue(message: Any, tags: Mapping[str, str]) -> None:
    """Set a message's routing key to the queue that it was consumed from.

    With AMQP the producer chooses the routing key: one that binds ``requests`` to an exchange of
    its own can send any. The broker's permissions apply to the queue. ``tags`` maps queues to the
    consumer's tags. (Our Redis transport has set the queue already.)
    """
    tag = message.delivery_info.get("consumer_tag")
    for queue, known in tags.items():
        if known == tag:
            message.delivery_info.update(exchange="", routing_key=queue)


class Consumer(consumer.Consumer):  # type: ignore[misc] # celery ships no types
    """Celery's consumer, which checks each message before Celery handles it."""

    def __init__(self, *args: Any, store: DeadLetterStore, limits: Limits, **kwargs: Any) -> None:
        self._store = store
        self._max_message_bytes = limits.max_message_bytes
        self._limit = HourlyLimit(limits.dead_letters_per_hour)
        self._dropped: Counter[str] = Counter()
        self._flushed_by = 0.0
        super().__init__(*args, **kwargs)

    def connection_for_read(self, heartbeat: float | None = None) -> Any:
        """Open Celery's connection, through our transport if the broker is Redis."""
        options = our_transport(self.app.conf.broker_read_url or "")
        if self.app.conf.broker_use_ssl:
            options.pop("ssl", None)
        return self.ensure_connected(self.app.connection_for_read(heartbeat=heartbeat, **options))

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        """Return a handler that checks each message and then calls Celery's handler."""
        handle = super().create_task_handler(*args, **kwargs)

        def on_task_received(message: Any) -> Any:
            note_queue(message, self.task_consumer._active_tags)  # noqa: SLF001 - kombu has no public way
            reason = fault(message, self.app.tasks, self._max_message_bytes)
            if reason is not None:
                return self._set_aside(message, reason)
            _override_headers(message)
            return handle(message)

        return on_task_received

    def on_send_event_buffered(self) -> None:
        """Send buffered events after a delay; Celery would send them in the next loop iteration."""
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
        queue = queue_of(message)
        if self._limit.allows(queue):
            self._keep(message, describe_message(message, reason))
            return
        if not self._dropped:
            self.timer.call_after(COUNT_PAUSE, self._count_dropped)
        self._dropped[queue] += 1
        message.ack_log_error(log, self.connection_errors)

    def _count_dropped(self) -> None:
        dropped, self._dropped = self._dropped, Counter()
        try:
            for queue in sorted(dropped):
                self._store.count_dropped(queue, dropped[queue])
                dropped[queue] = 0
        # As below: the numbers are kept, and stored with the next ones.
        except Exception:
            log.exception("The number of dropped messages could not be stored; it is tried again.")
            self._dropped.update(dropped)
            self.timer.call_after(COUNT_PAUSE, self._count_dropped)

    def _keep(self, message: Any, dead_letter: DeadLetter) -> None:
        try:
            self._store.keep(dead_letter)
        # Whatever the error, the message stays unacknowledged and is tried again, and the worker
        # continues with other messages.
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
