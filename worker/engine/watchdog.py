"""End a process whose work does not come back, so that its supervisor starts another one.

A call may wait for ever for a peer that fell silent: the connection is there, and nobody answers.
Whatever the process held is taken up again, as after any other death.
"""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass, field
from typing import Any, Final

from celery import Celery, bootsteps

EXIT_CODE: Final = 70
"""How a process ends that its watchdog ended: an internal error of the software."""
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Watchdog:
    """Ends this process when ``beat`` is not called for ``seconds``, once it was called.

    It counts its own ticks, not time: a process that was stopped for a while is not at fault.
    """

    what: str
    seconds: float
    _left: float | None = None
    _thread: threading.Thread | None = None
    _stopped: threading.Event = field(default_factory=threading.Event)

    def beat(self) -> None:
        """Note that the work has come back."""
        self._left = self.seconds
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
            self._thread.start()

    def suspend(self) -> None:
        """Wait for nothing until the next beat."""
        self._left = None

    def stop(self) -> None:
        """End the thread."""
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
    """Let the main loop of this app's workers beat while it is connected to the broker."""

    class Beat(bootsteps.StartStopStep):  # type: ignore[misc] # celery ships no types
        """Beats by the main loop's own timer; looking for a broker that is away is no fault."""

        def start(self, consumer: Any) -> None:
            consumer.timer.call_repeatedly(min(1.0, watchdog.seconds / 4), watchdog.beat)

        def stop(self, consumer: Any) -> None:
            del consumer
            watchdog.suspend()

    app.steps["consumer"].add(Beat)
