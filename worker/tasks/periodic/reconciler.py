"""Run the reconciler: publish overdue steps again, and start everything that is due.

Several reconcilers may run at once: each change is one conditional statement, so only one of them
makes it. A pass publishes at most a few hundred messages.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import or_, select, update
from sqlalchemy.exc import DBAPIError

from worker.db import audits, dead_letters
from worker.db.core.engine import db_now, reading, transaction
from worker.db.networks import dhcp_leases as leases
from worker.db.operations import recovery, retention, store
from worker.db.operations.values import Operation
from worker.db.share_servers import store as servers
from worker.db.tables.main import operations
from worker.engine.job import Runtime
from worker.failpoints import failpoint
from worker.messaging.broker import UNREACHABLE, priorities
from worker.messaging.queues import queue_for
from worker.model import Phase
from worker.tasks.audit import ask_for_audits
from worker.tasks.clean_up import start_clean_up
from worker.tasks.orphans import NAME as AUDIT
from worker.tasks.periodic import server_checks as checks
from worker.tasks.periodic.lease_renewals import Send, ask_for_renewals

TICK_SECONDS: Final = 1.0
HOUSEKEEPING_SECONDS: Final = 30.0
PURGE_BATCH: Final = 1000
PURGE_SECONDS: Final = 0.5
"""The longest time that one pass spends on purging; enough to keep up with the workers."""
STORE_AGAIN_SECONDS: Final = 30.0
AUDITS_KEPT: Final = 86400.0
"""Seconds for which audits are kept; their findings are in a table of their own."""

_NOTHING_CLAIMED: Final = recovery.Claimed()
_log = logging.getLogger(__name__)

Depth = Callable[[str], int]
"""Returns the number of messages in a queue."""
AskForReports = Callable[[], None]
"""Asks every worker group to report its backends' pools."""


@dataclass(slots=True)
class Progress:
    """The newest messages that the workers of each queue have claimed, as recent passes saw them.

    A pass sees only the steps that are running, and short steps rarely are. Old observations are
    dropped, because the database's clock may have been set back meanwhile.
    """

    _recent: dict[str, recovery.Claimed] = field(default_factory=dict)
    _former: dict[str, recovery.Claimed] = field(default_factory=dict)
    _forget_at: float = 0.0

    def note(self, seen: Mapping[str, recovery.Claimed], *, keep: float) -> None:
        """Remember what a pass has seen for at least ``keep`` seconds and at most twice as long."""
        now = time.monotonic()
        if now >= self._forget_at:
            self._former, self._recent, self._forget_at = self._recent, {}, now + keep
        for queue, claimed in seen.items():
            self._recent[queue] = claimed.and_then(self._recent.get(queue, _NOTHING_CLAIMED))

    def of(self, queue: str) -> recovery.Claimed:
        """Return the newest messages that a queue's workers have claimed."""
        former = self._former.get(queue, _NOTHING_CLAIMED)
        return former.and_then(self._recent.get(queue, _NOTHING_CLAIMED))


@dataclass(slots=True)
class Reconciler:
    """The passes of one reconciler, and what it remembers between them."""

    runtime: Runtime
    depth: Depth
    ask_for_reports: AskForReports
    send_renewals: Send
    send_checks: checks.Send
    beat: Callable[[], None] = lambda: None
    _next_reports: float = 0.0
    _next_housekeeping: float = 0.0
    _orphaned: frozenset[str] = frozenset()
    _progress: Progress = field(default_factory=Progress)

    def run(self, stopped: threading.Event) -> None:
        """Run one pass per second until ``stopped`` is set; an outage only ends a pass early."""
        while not stopped.is_set():
            began = time.monotonic()
            self.beat()
            try:
                self.one_pass()
            except (DBAPIError, *UNREACHABLE) as error:
                _log.warning(
                    "This pass ended early (%s: %.200s); the next one tries again.",
                    type(error).__name__,
                    str(error),
                )
            stopped.wait(max(0.0, TICK_SECONDS - (time.monotonic() - began)))

    def one_pass(self) -> int:
        """Do everything that is due; return how many operations were published again."""
        taken_up = self._redrive_overdue()
        self._store_results()
        self.beat()
        self._clean_up_idle()
        self._purge()
        ask_for_renewals(self.runtime, self.send_renewals)
        checks.ask_for_checks(self.runtime, self.send_checks)
        now = time.monotonic()
        if now >= self._next_reports:
            self._next_reports = now + self.runtime.config.engine.report_interval
            self.ask_for_reports()
            ask_for_audits(self.runtime)
        if now >= self._next_housekeeping:
            self._next_housekeeping = now + HOUSEKEEPING_SECONDS
            self._report_unknown()
            self._cap_deadlines()
            self._report_orphaned_backends()
            self._purge_marks()
            self._forget_orphans()
            self._forget_failed()
        self.runtime.heartbeat.flush()
        return taken_up

    def _redrive_overdue(self) -> int:
        # A backend whose queue changed must not use up the pass: others have lost messages too.
        batch = self.runtime.config.engine.redrive_batch
        rerouted = self._reroute(max(1, batch // 2))
        batch = max(1, batch - rerouted)
        with reading(self.runtime.engine) as connection:
            gone = recovery.due(connection, (Phase.LEASED, Phase.WAITING), batch, known=self._known)
            queues = recovery.overdue_queues(connection, self._known)
            seen = recovery.claimed(connection, strict_priorities=self._strict_priorities)
        self._progress.note(seen, keep=2 * self.runtime.config.engine.lease)
        # Neither kind of operation may delay the other.
        gone = gone[: batch if not queues else max(1, batch // 2)]
        room = max(1, batch - len(gone))
        count = rerouted + self._redrive(gone)
        for number, queue in enumerate(queues):
            share = max(1, room // (len(queues) - number))
            found = self._take_up_lost(queue, share)
            room = max(1, room - found)
            count += found
        return count

    def _reroute(self, limit: int) -> int:
        """Move overdue operations to the queue that the current configuration gives them.

        There may be no worker for the stored queue any more, for example after the backend's host
        was renamed.
        """
        config, count = self.runtime.config, 0
        with reading(self.runtime.engine) as connection:
            routes = recovery.routes(connection, self._known)
        for old, backend in routes:
            if count >= limit:
                break
            if backend not in config.backends or queue_for(config, backend) == old:
                continue
            with transaction(self.runtime.engine) as connection:
                dispatches = recovery.reroute(
                    connection,
                    backend,
                    old=old,
                    new=queue_for(config, backend),
                    limit=limit - count,
                    republish_after=config.engine.lease,
                    known=self._known,
                )
            self.runtime.publish_all(dispatches)
            count += len(dispatches)
        return count

    def _take_up_lost(self, queue: str, limit: int) -> int:
        """Publish the lost messages of a queue again, and postpone those that are still queued.

        If the queue is empty, all its overdue messages are lost. Otherwise a message is lost when a
        later one has been claimed. A message that is older than ``engine.queued_limit`` is
        published again as well, unless the queue is already long.
        """
        engine = self.runtime.config.engine
        depth = self.depth(queue)
        seen = None if depth == 0 else self._progress.of(queue)
        old = recovery.is_old(engine.queued_limit if depth < engine.redrive_batch else None)
        lost = or_(recovery.is_lost(seen), old)
        with reading(self.runtime.engine) as connection:
            overdue = recovery.lost(connection, queue, lost, limit, known=self._known)
        count = self._redrive(overdue)
        with transaction(self.runtime.engine) as connection:
            recovery.postpone(
                connection, queue, lost, republish_after=engine.lease, known=self._known
            )
        return count

    @property
    def _known(self) -> list[tuple[str, int]]:
        return self.runtime.sagas.versions

    @property
    def _strict_priorities(self) -> bool:
        return priorities(self.runtime.config.broker.url).strict

    def _redrive(self, late: Sequence[Operation]) -> int:
        if not late:
            return 0
        with transaction(self.runtime.engine) as connection:
            dispatches = recovery.redrive(
                connection, late, republish_after=self.runtime.config.engine.lease
            )
        failpoint("reconcile.after_redrive")
        self.runtime.heartbeat.count("redrives_total", len(dispatches))
        self.runtime.publish_all(dispatches)
        return len(dispatches)

    def _store_results(self) -> None:
        """Store the results again that no worker has confirmed to be stored."""
        o = operations.c
        with transaction(self.runtime.engine) as connection:
            late = store.locked(
                select(o.seq)
                .where(o.result_due_at < db_now())
                .order_by(o.result_due_at)
                .limit(self.runtime.config.engine.redrive_batch),
                skip_locked=True,
            )
            rows = connection.execute(
                update(operations)
                .where(o.seq.in_(late))
                .values(result_due_at=db_now() + STORE_AGAIN_SECONDS)
                .returning(o.id, o.result, o.error, o.idempotency_key)
            ).all()
        for row in rows:
            self.beat()  # an unreachable result backend may delay each of them by a time-out
            self.runtime.deliver(
                row.id, row.result, row.error, aliased=row.idempotency_key is not None
            )

    def _clean_up_idle(self) -> None:
        """Start the clean-up of share servers that have been idle for long enough."""
        config = self.runtime.config
        interval = config.engine.unused_share_server_cleanup_interval
        with reading(self.runtime.engine) as connection:
            idle = servers.idle(
                connection, interval, config.engine.redrive_batch, backends=config.backends
            )
        for server_id in idle:
            operation_id = str(uuid.uuid4())
            with transaction(self.runtime.engine) as connection:
                row = servers.mark_deleting(connection, server_id, operation_id)
                if row is None:
                    continue  # a share was added to it meanwhile
                dispatches = start_clean_up(
                    connection, config, self.runtime.sagas, row, operation_id
                )
            self.runtime.publish_all(dispatches)

    def _report_orphaned_backends(self) -> None:
        """Log once which backends are in use but no longer in the configuration."""
        with reading(self.runtime.engine) as connection:
            orphaned = recovery.orphaned_backends(connection, self.runtime.config.backends)
        for backend in sorted(set(orphaned) - self._orphaned):
            _log.error(
                "Backend %s is not in the configuration, but operations or share servers refer to "
                "it: nothing is done for them. Configure it again under that name.",
                backend,
            )
        self._orphaned = frozenset(orphaned)

    def _report_unknown(self) -> None:
        """Log which operations wait for a reconciler of a newer release."""
        with reading(self.runtime.engine) as connection:
            unknown = recovery.unknown(connection, self._known)
        for saga, version, count in unknown:
            _log.warning(
                "%d operations of saga %s, version %d, are overdue, and this release does not know "
                "that version. Start a reconciler and workers of a newer release.",
                count,
                saga,
                version,
            )

    def _cap_deadlines(self) -> None:
        engine = self.runtime.config.engine
        longest = max(engine.retry_pause_max * 1.25, engine.failed_undo_pause)
        with transaction(self.runtime.engine) as connection:
            capped = recovery.cap_deadlines(connection, lease=engine.lease, longest_pause=longest)
        if capped:
            _log.warning(
                "The database's clock was set back: %d deadlines were too far ahead; moved them.",
                capped,
            )

    def _purge(self) -> None:
        """Delete operations that ended long ago, for at most :data:`PURGE_SECONDS`."""
        keep = self.runtime.config.engine.keep_operations
        until = time.monotonic() + PURGE_SECONDS
        with reading(self.runtime.engine) as connection:
            left = retention.has_old(connection, keep)
        forgotten = 0
        while left and time.monotonic() < until:
            with transaction(self.runtime.engine) as connection:
                count = retention.forget_old(connection, keep, PURGE_BATCH)
            forgotten += count
            left = count == PURGE_BATCH
        if forgotten:
            _log.info("Forgot %d operations that ended long ago.", forgotten)

    def _purge_marks(self) -> None:
        """Delete tombstones, audits and dead letters that are no longer needed."""
        keep = self.runtime.config.engine.keep_operations
        until = time.monotonic() + HOUSEKEEPING_SECONDS / 10
        left = True
        while left and time.monotonic() < until:
            with transaction(self.runtime.engine) as connection:
                gone = audits.forget_old(connection, keep, PURGE_BATCH)
                audits_gone = retention.forget_old_audits(
                    connection, AUDIT, min(AUDITS_KEPT, keep), PURGE_BATCH
                )
                letters = dead_letters.purge(
                    connection, self.runtime.config.engine.keep_dead_letters, PURGE_BATCH
                )
            left = max(gone, audits_gone, letters) == PURGE_BATCH

    def _forget_orphans(self) -> None:
        with transaction(self.runtime.engine) as connection:
            gone = leases.forget_orphans(connection)
        if gone:
            _log.info("Deleted %d DHCP leases of share servers that no longer exist.", gone)

    def _forget_failed(self) -> None:
        kept = self.runtime.config.engine.keep_failed_share_servers
        with transaction(self.runtime.engine) as connection:
            gone = servers.forget_failed(connection, kept, PURGE_BATCH)
        if gone:
            _log.info("Deleted the rows of %d share servers whose build failed long ago.", gone)
