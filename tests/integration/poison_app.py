"""The worker of ``test_poison.py``: two queues, a quarantine in a file, and a task that is good."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from celery import Celery

from worker.config import BrokerSettings
from worker.db.dead_letters import DeadLetter
from worker.messaging.broker import transport_options
from worker.messaging.consumer import Limits, install

_DIRECTORY = Path(os.environ["POISON_DIRECTORY"])
_BROKER = BrokerSettings(url=os.environ["POISON_BROKER"], visibility_timeout=5)


def _append(name: str, line: str) -> None:
    with (_DIRECTORY / name).open("a") as file:
        file.write(line + "\n")


class _Store:
    def keep(self, dead_letter: DeadLetter) -> None:
        if (_DIRECTORY / "broken").exists():
            raise RuntimeError("the store is broken")
        _append("quarantine", json.dumps(dataclasses.asdict(dead_letter), default=str))

    def count_dropped(self, queue: str, number: int) -> None:
        _append("dropped", f"{queue} {number}")


app = Celery("poison", broker=_BROKER.url)
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    broker_transport_options=transport_options(_BROKER),
)
install(app, _Store(), Limits(_BROKER.max_message_bytes, _BROKER.dead_letters_per_hour))


@app.task(name="good")  # type: ignore[untyped-decorator] # celery ships no types
def good(word: str) -> None:
    _append("good", word)
