"""A producer with whatever Celery is installed here: send requests, write down what each became.

Arguments: broker, result backend, transport options as JSON. Standard input: a JSON list of
``[task, payload, options]``, options being those of ``send_task``. Standard output: a JSON list
of ``{"result": ...}`` or ``{"type": ..., "args": [...]}``, in the same order.
"""

from __future__ import annotations

import inspect
import json
import sys
from importlib.metadata import version
from typing import Any

if version("celery").startswith("4."):
    # Celery 4's own packages import two functions that Python 3.11 no longer has.
    inspect.formatargspec = inspect.getargspec = inspect.getfullargspec  # type: ignore[attr-defined]

from celery import Celery


def outcome(result: Any) -> dict[str, Any]:
    """What a producer gets of a request."""
    try:
        return {"result": result.get(timeout=60)}
    except Exception as failure:  # noqa: BLE001 - whatever it is, it is written down
        return {"type": type(failure).__name__, "args": failure.args}


broker, results, transport_options = sys.argv[1:]
app = Celery(broker=broker, backend=results)
app.conf.broker_transport_options = json.loads(transport_options)
sent = [
    app.send_task(task, [payload], queue="requests", **options)
    for task, payload, options in json.load(sys.stdin)
]
print(json.dumps([outcome(result) for result in sent], default=str))
