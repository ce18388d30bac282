"""The reconciler: takes up again what is overdue, and finishes what a dead process left unsaid.

Any number of them may run; each change is one conditional statement, so two never do the same.
A pass publishes at most a few hundred messages.
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
"""How much of a pass may go to purging: operations are forgotten faster than workers do them."""
STORE_AGAIN_SECONDS: Final = 30.0
AUDITS_KEPT: Final = 86400.0
"""Seconds; there is one for each backend and interval, and what it found has a table."""

_NOTHING_CLAIMED: Final = recovery.Claimed()
_log = logging.getLogger(__name__)

Depth = Callable[[str], int]
"""How many messages wait in a queue."""
AskForReports = Callable[[], None]
"""Asks every worker group to report its backends' pools."""


@dataclass(slots=True)
class Progress:
    """How far the workers of each queue were seen to have come, in this and recent passes.

    A pass sees the steps in hand only, and short ones are rarely in hand. What was seen long ago
    is forgotten, because the database's clock may have been put back meanwhile.
    """

    _recent: dict[str, recovery.Claimed] = field(default_factory=dict)
    _former: dict[str, recovery.Claimed] = field(default_factory=dict)
    _forget_at: float = 0.0

    def note(self, seen: Mapping[str, recovery.Claimed], *, keep: float) -> None:
        """Remember what a pass has seen, for ``keep`` seconds and at most twice as long."""
        now = time.monotonic()
        if now >= self._forget_at:
            self._former, self._recent, self._forget_at = self._recent, {}, now + keep
        for queue, claimed in seen.items():
            self._recent[queue] = claimed.and_then(self._recent.get(queue, _NOTHING_CLAIMED))

    def of(self, queue: str) -> recovery.Claimed:
        """Return how far a queue's workers have come."""
        former = self._former.get(queue, _NOTHING_CLAIMED)
        return former.and_then(self._recent.get(queue, _NOTHING_CLAIMED))


@dataclass(slots=True)
class Reconciler:
    """One reconciler's passes and what it remembers between them."""

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
        """Pass after pass, one a second, until told to stop; an outage is waited out."""
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
        """Do everything that is due; return how many operations were taken up again."""
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
        batch = self.runtime.config.engine.redrive_batch
        rerouted = self._reroute(batch)
        with reading(self.runtime.engine) as connection:
            gone = recovery.due(connection, (Phase.LEASED, Phase.WAITING), batch, known=self._known)
            queues = recovery.overdue_queues(connection, self._known)
            seen = recovery.claimed(connection, strict_priorities=self._strict_priorities)
        self._progress.note(seen, keep=2 * self.runtime.config.engine.lease)
        # Neither kind of work may keep the other from being taken up.
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
        """Send what is overdue to the queue that today's configuration gives.

        Nobody may read the stored one any more: the backend's host has another name, for example.
        """
        config, count = self.runtime.config, 0
        with reading(self.runtime.engine) as connection:
            routes = recovery.routes(connection, self._known)
        for old, backend in routes:
            if backend not in config.backends or queue_for(config, backend) == old:
                continue
            with transaction(self.runtime.engine) as connection:
                dispatches = recovery.reroute(
                    connection,
                    backend,
                    old=old,
                    new=queue_for(config, backend),
                    limit=limit,
                    republish_after=config.engine.lease,
                    known=self._known,
                )
            self.runtime.publish_all(dispatches)
            count += len(dispatches)
        return count

    def _take_up_lost(self, queue: str, limit: int) -> int:
        """Publish again what is lost of a queue's messages, and postpone what waits its turn.

        Nothing waits in an empty queue, so its overdue messages are lost. In another, a message is
        lost when one that came after it was claimed. One that is older than ``queued_limit`` is
        published again, too, unless the queue is deep: that would only make it deeper.
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
        """Store results again whose worker did not say that it had."""
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
            self.beat()  # a result backend that is away may cost each of them a time limit
            self.runtime.deliver(
                row.id, row.result, row.error, aliased=row.idempotency_key is not None
            )

    def _clean_up_idle(self) -> None:
        """Start the clean-up of share servers that were idle long enough."""
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
                    continue  # somebody joined it at the last moment
                dispatches = start_clean_up(
                    connection, config, self.runtime.sagas, row, operation_id
                )
            self.runtime.publish_all(dispatches)

    def _report_orphaned_backends(self) -> None:
        """Say once which backends are gone from the configuration and still referred to."""
        with reading(self.runtime.engine) as connection:
            orphaned = recovery.orphaned_backends(connection, self.runtime.config.backends)
        for backend in sorted(set(orphaned) - self._orphaned):
            _log.error(
                "Backend %s is not in the configuration, and operations or share servers refer to "
                "it: nothing is done for them. Put it back under that name.",
                backend,
            )
        self._orphaned = frozenset(orphaned)

    def _report_unknown(self) -> None:
        """Say which operations wait for a reconciler of a newer release."""
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
                "The database's clock was put back: %d deadlines were too far ahead.", capped
            )

    def _purge(self) -> None:
        """Forget what ended long ago, until nothing is left or this pass has used its time."""
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
        """Forget tombstones, audits and dead letters that are no longer needed."""
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
            _log.info("Forgot %d DHCP leases of share servers that are no more.", gone)

    def _forget_failed(self) -> None:
        kept = self.runtime.config.engine.keep_failed_share_servers
        with transaction(self.runtime.engine) as connection:
            gone = servers.forget_failed(connection, kept, PURGE_BATCH)
        if gone:
            _log.info("Forgot %d share servers whose build failed long ago.", gone)
