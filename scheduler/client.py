"""Client for producers: submit a request and wait for its result.

Plain Celery works too (docs/producer.md shows the ten lines). This client adds the
acknowledgement: :meth:`Client.submit` returns when the operation is committed, and sends the
request again when there is no answer, which is always safe.
"""

from __future__ import annotations

import base64
import contextlib
import math
import time
import uuid
from collections.abc import Mapping
from typing import Any, Final

from celery import Celery
from celery.result import AsyncResult
from kombu.connection import Connection
from kombu.exceptions import OperationalError

from worker.errors import RequestFailed
from worker.messaging.broker import UNREACHABLE
from worker.messaging.queues import READ_REQUESTS, REQUESTS, request_queue
from worker.sealing import SealingKey, seal

RESEND_SECONDS: Final = 5.0
POLL_SECONDS: Final = 0.02
LONGEST_POLL_SECONDS: Final = 0.25
"""Longest pause between two polls, in seconds; it grows while the operation runs."""
OUTAGE_SECONDS: Final = 0.5
"""Seconds between attempts while the broker or the result backend cannot be reached."""
CONNECT_SECONDS: Final = 3

_REFUSED: Final = "no permissions"
"""Part of the error of Redis for a user without permission for a key."""


def broker_fault(url: str) -> str | None:
    """Return the name of the error why a broker cannot be reached, or None when it answers."""
    # kombu has no types
    probe: Any = Connection(url, connect_timeout=CONNECT_SECONDS)  # type: ignore[no-untyped-call]
    try:
        probe.ensure_connection(max_retries=1, timeout=CONNECT_SECONDS)
    except (OSError, OperationalError) as error:
        return type(error).__name__
    finally:
        probe.release()
    return None


class NotHeard(Exception):
    """No answer to a request came in time; sending it again under its id is safe."""


def _answer(result: AsyncResult) -> dict[str, Any]:
    """Return the object of a result that is ready, or raise RequestFailed."""
    try:
        answer = result.get()
    except Exception as error:
        if len(error.args) == 4 and type(error).__name__ == "RequestFailed":  # noqa: PLR2004 - code, message, object, field
            raise RequestFailed(*error.args) from None
        raise
    return dict(answer)


class Client:
    """Client of a producer, for one broker and one result backend."""

    def __init__(self, broker_url: str, result_backend: str) -> None:
        self._app = Celery("sharewright-client", broker=broker_url, backend=result_backend)
        self._app.conf.update(
            task_serializer="json",
            result_serializer="json",
            accept_content=["json"],
            task_send_sent_event=True,
            # One call gives up after a second or two; the client itself repeats it until its
            # timeout.
            result_backend_transport_options={"retry_policy": {"max_retries": 1}},
        )

    def send(
        self, verb: str, payload: Mapping[str, Any], *, operation_id: str, admin: bool = False
    ) -> None:
        """Publish a request without waiting for an answer."""
        self._publish(verb, payload, operation_id, request_queue(verb, admin=admin))

    def _publish(
        self, verb: str, payload: Mapping[str, Any], operation_id: str, queue: str
    ) -> None:
        self._app.send_task(
            f"sharewright.request.{verb}",
            args=(dict(payload),),
            task_id=operation_id,
            queue=queue,
            headers={"sharewright-acknowledge": True},
            argsrepr=f"({verb})",
            # Otherwise Celery subscribes to the result, and fails after an outage of 20 s.
            ignore_result=True,
        )

    def submit(
        self,
        verb: str,
        payload: Mapping[str, Any],
        *,
        operation_id: str | None = None,
        admin: bool = False,
        timeout: float = 30.0,
    ) -> str:
        """Publish a request until it is accepted; return its operation's id.

        An outage of the broker is waited for. Raises :class:`~worker.errors.RequestFailed` when
        the request is refused, or when its operation has already failed, and :class:`NotHeard`
        after ``timeout`` seconds without an answer.
        """
        request_id = operation_id or str(uuid.uuid4())
        result = self._app.AsyncResult(request_id)
        deadline = time.monotonic() + timeout
        queue = request_queue(verb, admin=admin)
        send_at = 0.0
        why = ""
        while time.monotonic() < deadline:
            try:
                if time.monotonic() >= send_at:
                    self._publish(verb, payload, request_id, queue)
                    send_at = time.monotonic() + RESEND_SECONDS
                    if queue == READ_REQUESTS:
                        # A scheduler of version 0.1.0 reads only this queue.
                        queue = REQUESTS
                state = result.state
                why = "is the scheduler running?"
            except UNREACHABLE as error:
                why = (
                    f"this user may not publish on {queue}, says the broker."
                    if _REFUSED in str(error).lower()
                    else f"the broker is not reached ({type(error).__name__})."
                )
                time.sleep(OUTAGE_SECONDS)
                continue
            if state == "FAILURE":
                self.result(request_id, timeout=timeout)
            if state != "PENDING":
                return request_id
            time.sleep(POLL_SECONDS)
        raise NotHeard(
            f"Nothing was heard of request {request_id} within {timeout:.0f} s; "
            f"{why} Sending it again under this id is safe."
        )

    def result(self, operation_id: str, timeout: float | None = None) -> dict[str, Any]:
        """Wait for an operation's end; return its object as a document.

        An outage of the result backend is waited for. Raises
        :class:`~worker.errors.RequestFailed` when the operation was refused, or failed and was
        undone, and :class:`NotHeard` after ``timeout`` seconds.
        """
        result = self._app.AsyncResult(operation_id)
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        pause = POLL_SECONDS
        while True:
            try:
                if result.ready():
                    return _answer(result)
                why = "has not ended"
            except UNREACHABLE as error:
                why = f"was not heard of ({type(error).__name__} of the result backend)"
            if time.monotonic() >= deadline:
                raise NotHeard(f"Operation {operation_id} {why} within {timeout:.0f} s.")
            time.sleep(pause)
            pause = min(pause * 1.1, LONGEST_POLL_SECONDS)

    def read(
        self,
        verb: str,
        payload: Mapping[str, Any],
        *,
        admin: bool = False,
        timeout: float = 30.0,
    ) -> dict[str, Any]:
        """Send a ``show_`` or ``list_`` request; return its answer, deleting it from the backend.

        Raises as :meth:`submit` and :meth:`result`.
        """
        request_id = self.submit(verb, payload, admin=admin, timeout=timeout)
        answer = self.result(request_id, timeout)
        # An answer that could not be deleted expires within minutes.
        with contextlib.suppress(*UNREACHABLE):
            self._app.AsyncResult(request_id).forget()
        return answer

    def seal(
        self,
        password: str,
        *,
        project_id: str,
        key: SealingKey | None = None,
        timeout: float = 30.0,
    ) -> dict[str, str]:
        """Seal a password for one project; return the value of a payload's ``password``.

        Without ``key`` the service is asked for its public key; pass it if you do not trust the
        broker with the answer. Raises as :meth:`result`.
        """
        if key is None:
            asked = {"version": 1, "context": {"project_id": project_id}}
            answer = self.read("show_sealing_key", asked, timeout=timeout)
            key = SealingKey(answer["key_id"], base64.b64decode(answer["public_key"]))
        sealed = seal(key, password, project_id)
        return {"key_id": key.id, "sealed": base64.b64encode(sealed).decode()}

    def close(self) -> None:
        """Close the connections."""
        self._app.close()
