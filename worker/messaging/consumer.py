"""The consumer of our workers: Celery's, which looks at each message before Celery acts on it.

A message that no task can be run for becomes a dead letter, and is acknowledged only when the
dead letter is kept.
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
"""Seconds until a dead letter that could not be kept is tried again."""

EVENTS_SECONDS: Final = 0.1
"""Seconds for which task events are gathered: each publication costs as much as a task's own."""

REQUEST_TASKS: Final = "sharewright.request."

log = logging.getLogger(__name__)


HOUR: Final = 3600.0
COUNT_PAUSE: Final = 5.0
"""Seconds for which dropped messages are gathered before their number is stored."""


class DeadLetterStore(Protocol):
    """Where dead letters go.

    The event loop of the worker's main process waits for each call: it must be quick and have a
    timeout.
    """

    def keep(self, dead_letter: DeadLetter) -> None:
        """Store a dead letter, or raise."""

    def count_dropped(self, queue: str, number: int) -> None:
        """Add to the number of messages that were dropped unkept, or raise."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a consumer accepts: the size of a message, and dead letters an hour and queue."""

    max_message_bytes: int
    dead_letters_per_hour: int


class HourlyLimit:
    """How many more dead letters of each queue are kept within this hour."""

    def __init__(self, most: int, now: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._now = now
        self._kept: Counter[str] = Counter()
        self._ends = now() + HOUR

    def allows(self, queue: str) -> bool:
        """Take one of the queue's allowance; False when there is none left."""
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
    """Replace the headers of a producer with which Celery would do what we must not.

    A result is stored once, when the operation ends. Celery 5.1 to 5.6 send ``ignore_result:
    false`` with every task, which takes precedence over the task's own setting: each producer
    would be told SUCCESS as soon as its request is taken in. Events show no payload.
    """
    message.headers["ignore_result"] = True
    if str(message.headers["task"]).startswith(REQUEST_TASKS):
        message.headers.update(argsrepr="(payload)", kwargsrepr="{}")


def note_queue(message: Any, tags: Mapping[str, str]) -> None:
    """Write the queue that a message was consumed from where Celery keeps its routing key.

    With AMQP the routing key is the producer's word: whoever binds ``requests`` to an exchange of
    his own can give any. A broker's permissions are on the queue. ``tags`` are the consumer's
    tags by queue. (Our Redis transport has written the queue there already.)
    """
    tag = message.delivery_info.get("consumer_tag")
    for queue, known in tags.items():
        if known == tag:
            message.delivery_info.update(exchange="", routing_key=queue)


class Consumer(consumer.Consumer):  # type: ignore[misc] # celery ships no types
    """Celery's consumer, which checks each message before Celery acts on it."""

    def __init__(self, *args: Any, store: DeadLetterStore, limits: Limits, **kwargs: Any) -> None:
        self._store = store
        self._max_message_bytes = limits.max_message_bytes
        self._limit = HourlyLimit(limits.dead_letters_per_hour)
        self._dropped: Counter[str] = Counter()
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
            note_queue(message, self.task_consumer._active_tags)  # noqa: SLF001 - told nowhere else
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
        # As below: the numbers stay, and are stored with the next ones.
        except Exception:
            log.exception("The number of dropped messages could not be stored; it is tried again.")
            self._dropped.update(dropped)
            self.timer.call_after(COUNT_PAUSE, self._count_dropped)

    def _keep(self, message: Any, dead_letter: DeadLetter) -> None:
        try:
            self._store.keep(dead_letter)
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
