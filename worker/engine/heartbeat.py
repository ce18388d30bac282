"""Renew the current step's lease and flush counters, in one daemon thread per process.

Counters, and the notes that results were stored, are buffered and written about once a second.
Losing them when the process is killed is harmless: a counter is slightly low, or a result is
stored twice.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import Engine, bindparam, insert, update
from sqlalchemy.exc import DBAPIError

from worker.db.core.engine import db_now, statement, transaction, wait_for_locks
from worker.db.core.prepared import Prepared
from worker.db.operations import store as operations
from worker.db.tables.main import counters
from worker.db.tables.main import operations as operations_table
from worker.errors import LeaseLost

FLUSH_SECONDS: Final = 1.0
LOCK_SECONDS: Final = 0.3
_log = logging.getLogger(__name__)

_ADD: Final = Prepared(
    update(counters)
    .where(counters.c.name == bindparam("counter"))
    .values(value=counters.c.value + bindparam("more"))
)
_FIRST: Final = Prepared(insert(counters).values(name=bindparam("name"), value=bindparam("value")))


@dataclass(slots=True)
class Lease:
    """The right to run one step, as far as this process knows.

    Times are readings of ``time.monotonic()``, in seconds. That clock keeps running while a process
    is stopped (SIGSTOP), so a process that is continued too late notices at once.
    """

    operation_id: str
    fence: int
    valid_until: float
    ends_at: float
    renewed_at: float
    lost: bool = False

    def guard(self) -> None:
        """Raise :class:`~worker.errors.LeaseLost` if this process no longer holds the lease."""
        now = time.monotonic()
        if self.lost or now >= self.valid_until or now >= self.ends_at:
            self.lost = True
            raise LeaseLost(
                f"The lease on operation {self.operation_id} ran out; another worker may run it."
            )


@dataclass(slots=True)
class Heartbeat:
    """The thread, the lease that it renews and what it has yet to write.

    The thread starts on first use, which is after the fork.
    """

    engine: Engine
    lease_seconds: float
    _lease: Lease | None = None
    _counts: Counter[str] = field(default_factory=Counter)
    _stored: list[str] = field(default_factory=list)
    _thread: threading.Thread | None = None
    _stopped: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def holding(
        self, operation_id: str, fence: int, claimed_at: float, timeout: float
    ) -> Iterator[Lease]:
        """Renew a lease until the block ends.

        ``claimed_at`` is a reading of ``time.monotonic()`` from just before the claim; the lease is
        not renewed later than ``timeout`` seconds after it.
        """
        self.start()
        lease = Lease(
            operation_id,
            fence,
            valid_until=claimed_at + self.lease_seconds,
            ends_at=claimed_at + timeout,
            renewed_at=claimed_at,
        )
        self._lease = lease
        try:
            yield lease
        finally:
            self._lease = None

    def count(self, name: str, by: int = 1) -> None:
        """Add ``by`` to a counter that ``/metrics`` shows."""
        self.start()
        with self._lock:
            self._counts[name] += by

    def stored(self, operation_id: str) -> None:
        """Note that an operation's result is in the result backend."""
        self.start()
        with self._lock:
            self._stored.append(operation_id)

    def start(self) -> None:
        """Start the thread unless it has been started."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop the thread and write what is buffered."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=FLUSH_SECONDS * 3)
        self.flush()

    def flush(self) -> None:
        """Write the buffered counters and notes; after a database error they stay buffered."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
            stored, self._stored = self._stored, []
        if not counts and not stored:
            return
        try:
            with transaction(self.engine) as connection:
                # A process that is stopped while it locks a counter must not block all others.
                wait_for_locks(connection, LOCK_SECONDS)
                for name in sorted(counts):  # one order in all processes: no deadlocks
                    if _ADD.run(connection, counter=name, more=counts[name]) == 0:
                        _FIRST.run(connection, name=name, value=counts[name])
                if stored:
                    connection.execute(
                        update(operations_table)
                        .where(
                            operations_table.c.id.in_(sorted(stored)),
                            # A result that is already due may be newer than the stored one.
                            operations_table.c.result_due_at > db_now(),
                        )
                        .values(result_due_at=None)
                    )
        except DBAPIError as error:
            _log.warning("Counters could not be written (%s); they are kept.", type(error).__name__)
            with self._lock:
                self._counts.update(counts)
                self._stored.extend(stored)

    def _run(self) -> None:
        pace = min(FLUSH_SECONDS, self.lease_seconds / 6)
        flushed = time.monotonic()
        while not self._stopped.wait(pace):
            lease = self._lease
            if lease is not None:
                self._renew(lease)
            if time.monotonic() - flushed >= FLUSH_SECONDS:
                self.flush()
                flushed = time.monotonic()

    def _renew(self, lease: Lease) -> None:
        now = time.monotonic()
        if lease.lost or now >= lease.ends_at or now - lease.renewed_at < self.lease_seconds / 3:
            return
        try:
            with statement(self.engine) as connection:
                kept = operations.renew(
                    connection, lease.operation_id, lease.fence, self.lease_seconds
                )
        except DBAPIError as error:
            _log.warning(
                "The lease on operation %s could not be renewed (%s); trying again.",
                lease.operation_id,
                type(error).__name__,
            )
            return
        if kept:
            lease.renewed_at, lease.valid_until = now, now + self.lease_seconds
        else:
            lease.lost = True
