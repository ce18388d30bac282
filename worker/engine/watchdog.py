"""End a process that hangs, so that its supervisor starts a new one.

A call may wait forever for a peer that no longer answers although the connection is open. The
process's unfinished steps are run again, as after a crash.
"""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass, field
from typing import Any, Final

from celery import Celery, bootsteps

EXIT_CODE: Final = 70
"""The exit code of a process that its watchdog ended: EX_SOFTWARE of sysexits.h."""
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Watchdog:
    """Ends this process when ``seconds`` pass after a call of ``beat`` without another one.

    It counts its own ticks instead of reading a clock, so that a process that was stopped (SIGSTOP)
    is not ended when it continues.
    """

    what: str
    seconds: float
    _left: float | None = None
    _thread: threading.Thread | None = None
    _stopped: threading.Event = field(default_factory=threading.Event)

    def beat(self) -> None:
        """Restart the countdown, and the thread if it does not run yet."""
        self._left = self.seconds
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
            self._thread.start()

    def suspend(self) -> None:
        """Stop the countdown until the next call of ``beat``."""
        self._left = None

    def stop(self) -> None:
        """Stop the thread."""
        self._stopped.set()

    def _run(self) -> None:
        tick = min(1.0, self.seconds / 4)
        while not self._stopped.wait(tick):
            left = self._left
            if left is None:
                continue
            if left > 0:
                self._left = left - tick
                continue
            _log.critical(
                "%s has not come back for %g s; process %d ends, to be started again.",
                self.what,
                self.seconds,
                os.getpid(),
            )
            logging.shutdown()
            os._exit(EXIT_CODE)


def watch_main_loop(app: Celery, watchdog: Watchdog) -> None:
    """Call ``beat`` from the main loop of the app's workers while it is connected to the broker."""

    class Beat(bootsteps.StartStopStep):  # type: ignore[misc] # celery ships no types
        """Beats from the main loop's timer, and suspends the watchdog without a broker."""

        def start(self, consumer: Any) -> None:
            consumer.timer.call_repeatedly(min(1.0, watchdog.seconds / 4), watchdog.beat)

        def stop(self, consumer: Any) -> None:
            del consumer
            watchdog.suspend()

    app.steps["consumer"].add(Beat)
