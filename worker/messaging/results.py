"""Results: one an operation, under the id that its producer chose.

Every task of ours ignores its own result. What is stored is the object, or an exception of
JSON-safe parts that a producer without this package can rebuild.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Final

from celery import Celery
from celery.app.backends import by_url
from celery.states import FAILURE, SUCCESS

from worker.errors import RequestFailed

ACCEPTED: Final = "ACCEPTED"
"""State of a request whose operation is committed; stored when the message asks for it."""
ACKNOWLEDGE_HEADER: Final = "sharewright-acknowledge"
"""The message header with which a producer asks to be told of the acceptance."""

StoreResult = Callable[[str, Mapping[str, Any] | None, Mapping[str, str] | None], None]


def storer(app: Celery, *, expires: int | None = None) -> StoreResult:
    """Return the function that stores how a request ended: its object or its error.

    What it stores can be fetched for ``expires`` seconds, or as long as all other results.
    """

    @functools.cache
    def backend() -> Any:
        if expires is None:
            return app.backend
        backend_class, url = by_url(app.conf.result_backend, app.loader)
        return backend_class(app=app, url=url, expires=expires)

    def store(
        request_id: str, result: Mapping[str, Any] | None, error: Mapping[str, str] | None
    ) -> None:
        if error is not None:
            failure = RequestFailed.from_json(dict(error))
            backend().store_result(request_id, failure, FAILURE)
        else:
            backend().store_result(request_id, dict(result or {}), SUCCESS)

    return store


def acknowledge(app: Celery, request_id: str) -> None:
    """Tell a waiting producer that its operation is committed, unless it has ended already."""
    if app.backend.get_state(request_id) not in {SUCCESS, FAILURE}:
        app.backend.store_result(request_id, {"id": request_id}, ACCEPTED)
