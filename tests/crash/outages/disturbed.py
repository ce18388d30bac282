"""The processes, with something wrong beneath all of them.

``python -m tests.crash.outages.disturbed DISTURBANCE DIRECTORY WORKERS SCHEDULERS TIMEOUT``.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any, Final

from kombu.transport.redis import Channel

from tests.crash.matrix import launcher


def _twice() -> None:
    """Every message is delivered twice."""
    put = Channel._put

    def put_twice(self: Any, queue: str, message: Any, **options: Any) -> None:
        put(self, queue, message, **options)
        put(self, queue, message, **options)

    Channel._put = put_twice


def _shuffled() -> None:
    """Messages overtake one another: each one goes to either end of its queue."""
    put = Channel._put

    def put_anywhere(self: Any, queue: str, message: Any, **options: Any) -> None:
        put(self, queue, message, **options)
        with self.conn_or_acquire() as client:
            if random.random() < 0.5:
                client.lmove(queue, queue, "LEFT", "RIGHT")

    Channel._put = put_anywhere


DISTURBANCES: Final[dict[str, Callable[[], None]]] = {
    "none": lambda: None,
    "twice": _twice,
    "shuffled": _shuffled,
}

if __name__ == "__main__":
    DISTURBANCES[sys.argv[1]]()
    launcher.main(*sys.argv[2:])
