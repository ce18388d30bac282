"""Store the results of operations under the ids that their producers chose.

Our tasks ignore their own results. An operation's result is its object, or an exception with
JSON-safe arguments that a producer can rebuild without this package.
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
"""The result state of a committed but unfinished operation; stored if the message asks for it."""
ACKNOWLEDGE_HEADER: Final = "sharewright-acknowledge"
"""The message header with which a producer asks for the state ``ACCEPTED``."""

StoreResult = Callable[[str, Mapping[str, Any] | None, Mapping[str, str] | None], None]


def storer(app: Celery, *, expires: int | None = None) -> StoreResult:
    """Return the function that stores a request's result: its object or its error.

    Results expire after ``expires`` seconds; by default, after the configured time. The function
    raises what :data:`worker.messaging.broker.UNREACHABLE` lists.
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
    """Store the state ``ACCEPTED`` for a request, unless its operation has already ended."""
    if app.backend.get_state(request_id) not in {SUCCESS, FAILURE}:
        app.backend.store_result(request_id, {"id": request_id}, ACCEPTED)
