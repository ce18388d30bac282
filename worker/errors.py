"""The exception classes of Sharewright, in one tree.

The class says whether a failed step is retried. It is chosen where an external system's error is
translated, and nobody parses the message text later::

    SharewrightError
    |-- Refused                 the request is not acceptable; nothing was changed
    |   |-- InvalidRequest        a field is missing, unknown or has an impossible value
    |   |-- NotFound              no such object in the project
    |   |-- Conflict              the object's state, or its use by others, does not allow it
    |   |-- QuotaExceeded         the project's quota would be exceeded
    |   |-- Forbidden             only an administrator or the owner may do it
    |   `-- NoCapacity            no backend can take the share; carries the reason for each
    |-- StepError               a step failed
    |   |-- Retryable             may succeed later: unreachable, busy, timed out
    |   `-- Fatal                 cannot succeed: undo begins
    |-- NotReady                not a failure: the external system needs time; the step waits
    |-- LeaseLost               this worker no longer owns the step and must stop
    `-- ConfigurationError      the worker cannot start as configured
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any


class ErrorCode(StrEnum):
    """Error codes, stable for producers; docs/reference/errors.md is generated from them."""

    INVALID_REQUEST = "invalid_request"
    """A field is missing, unknown, of the wrong type or out of range."""
    NOT_FOUND = "not_found"
    """The object does not exist, or belongs to another project."""
    CONFLICT = "conflict"
    """The object's state, or something that uses it, does not allow the request."""
    FORBIDDEN = "forbidden"
    """Only an administrator may use the verb, or change the object."""
    IDEMPOTENCY_MISMATCH = "idempotency_mismatch"
    """The idempotency key was used before with a different payload."""
    TOO_MANY_QUEUED = "too_many_queued"
    """The object has the maximum number of queued operations; send the request again later."""
    QUOTA_EXCEEDED = "quota_exceeded"
    """The request exceeds the project's quota (or that of the project for one share type)."""
    NO_VALID_BACKEND = "no_valid_backend"
    """No backend passes the filters; the message says why each was refused."""
    SUPERSEDED = "superseded"
    """A delete of the same object replaced this operation before it began."""
    CANCELLED = "cancelled"
    """The operation was cancelled (by a delete or an operator) and undone."""
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    """A step crashed its worker at every attempt, and is not attempted again."""
    WAITED_TOO_LONG = "waited_too_long"
    """The step waited longer than its limit."""
    SHARE_SERVER_FAILED = "share_server_failed"
    """The share server that the operation waited for could not be built."""
    ADDRESSES_EXHAUSTED = "addresses_exhausted"
    """No free address is left in the pool."""
    NETWORK_FAILED = "network_failed"
    """The network system refused the request or failed."""
    COMPUTE_FAILED = "compute_failed"
    """The compute system refused the request or failed."""
    COMPUTE_EXHAUSTED = "compute_exhausted"
    """No host has room for another share server, or the compute quota is used up."""
    STORAGE_FAILED = "storage_failed"
    """The storage system refused the request or failed."""
    BACKEND_UNAVAILABLE = "backend_unavailable"
    """An external system did not answer, or answered that it is busy."""
    TIMEOUT = "timeout"
    """A call to an external system did not end within its limit."""
    NOT_SUPPORTED = "not_supported"
    """The backend's driver lacks the capability that the request needs."""
    CONFIGURATION = "configuration"
    """The configuration cannot work as it is."""
    INTERNAL = "internal"
    """A defect in Sharewright or in a plug-in; the log has the traceback."""


class ObjectKind(StrEnum):
    """The kinds of object that an error may be about; docs/producer.md lists them from here."""

    SHARE = "share"
    """A share; the id is its own."""
    SNAPSHOT = "snapshot"
    """A snapshot of a share; the id is its own."""
    ACCESS_RULE = "access_rule"
    """An access rule of a share; the id is its own, `access_id` in requests."""
    SHARE_NETWORK = "share_network"
    """A share network; the id is its own."""
    SHARE_SERVER = "share_server"
    """A share server; the id is its own."""
    SHARE_TYPE = "share_type"
    """A share type, by the id or name in the request."""
    SECURITY_SERVICE = "security_service"
    """A security service; the id is its own."""
    OPERATION = "operation"
    """An operation; the id is that of its request."""
    BACKEND = "backend"
    """A configured backend, by its name."""
    STORAGE_POOL = "storage_pool"
    """A storage pool of a backend, by its name."""
    QUOTA = "quota"
    """The limits of a project, by the project's id."""
    HOST = "host"
    """A host of workers, by its name."""
    SEALING_KEY = "sealing_key"
    """A key that seals passwords, by its id; `current` is the key in use."""

    @property
    def words(self) -> str:
        """The kind as written in a sentence."""
        return self.replace("_", " ")

    def ref(self, object_id: str) -> str:
        """Return the ``object`` of an error about one object: its kind and its id."""
        return f"{self} {object_id}"


class SharewrightError(Exception):
    """Base class of all errors: a code, a sentence, and the object and field that it is about.

    ``message`` says what happened, to which object, and what to do; it is shown to users
    unchanged, so it never contains a secret. ``object`` is an :class:`ObjectKind` and an id (see
    :meth:`ObjectKind.ref`) or empty; ``field`` is the payload field at fault or empty.
    """

    code: ErrorCode = ErrorCode.INTERNAL

    def __init__(
        self, message: str, *, object: str = "", field: str = "", code: ErrorCode | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.object = object
        self.field = field
        if code is not None:
            self.code = code

    def to_json(self) -> dict[str, str]:
        """Return the error as JSON-safe values, as stored in operations and sent in results."""
        return {
            "code": str(self.code),
            "message": self.message,
            "object": self.object,
            "field": self.field,
        }


class Refused(SharewrightError):
    """The request is refused before anything is changed."""

    code = ErrorCode.INVALID_REQUEST


class InvalidRequest(Refused):
    """A field is missing, unknown, or has an impossible value; ``field`` names it."""


class NotFound(Refused):
    """No such object in this project."""

    code = ErrorCode.NOT_FOUND


class Conflict(Refused):
    """The object's state, or an object that uses it, does not allow the request."""

    code = ErrorCode.CONFLICT


class QuotaExceeded(Refused):
    """The request exceeds the project's quota."""

    code = ErrorCode.QUOTA_EXCEEDED


class Forbidden(Refused):
    """Only an administrator may do this."""

    code = ErrorCode.FORBIDDEN


class NoCapacity(Refused):
    """No backend can take the share; ``refusals`` says why, backend by backend."""

    code = ErrorCode.NO_VALID_BACKEND

    def __init__(self, message: str, *, refusals: dict[str, str], object: str = "") -> None:
        super().__init__(message, object=object)
        self.refusals = refusals


class StepError(SharewrightError):
    """A step failed.

    ``share_server_id`` is the external id of a share server that exists despite the error, so that
    the undo can find it (the specification: the id comes back "either explicitly or as exception
    object attribute").
    """

    def __init__(
        self,
        message: str,
        *,
        object: str = "",
        field: str = "",
        code: ErrorCode | None = None,
        share_server_id: str | None = None,
    ) -> None:
        super().__init__(message, object=object, field=field, code=code)
        self.share_server_id = share_server_id


class Retryable(StepError):
    """The step may succeed later; it is retried after a pause, for a configured time."""

    code = ErrorCode.BACKEND_UNAVAILABLE


class Fatal(StepError):
    """The step cannot succeed; the operation is undone. ``code`` is required and says why."""

    def __init__(
        self,
        message: str,
        *,
        code: ErrorCode,
        object: str = "",
        field: str = "",
        share_server_id: str | None = None,
    ) -> None:
        super().__init__(
            message, object=object, field=field, code=code, share_server_id=share_server_id
        )


class NotReady(SharewrightError):
    """The external system needs time: neither a failure nor an attempt (engine.md, rule 7).

    The step runs again after ``retry_after`` seconds, or once the event that ``waits_for`` names
    has happened (a key such as ``share_server:<id>``). ``share_server_id`` is the external id of a
    share server that exists already. ``limit`` is the number of seconds that the step may wait in
    all, where that must be more than ``engine.wait_limit``: a copy in the external system may take
    hours.
    """

    def __init__(
        self,
        message: str,
        *,
        retry_after: float = 2.0,
        waits_for: str | None = None,
        share_server_id: str | None = None,
        limit: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.limit = limit
        self.retry_after = retry_after
        self.waits_for = waits_for
        self.share_server_id = share_server_id


class LeaseLost(SharewrightError):
    """The step's lease belongs to another worker now, or the operation has moved on.

    The caller stops at once and undoes nothing (engine.md, rule 5).
    """


class ConfigurationError(SharewrightError):
    """The configuration cannot work; the message says what to change."""

    code = ErrorCode.CONFIGURATION


class RequestFailed(Exception):
    """Error of a refused or failed request, as its producer receives it.

    The result backend stores its class name and four JSON-safe arguments, so
    ``AsyncResult(id).get()`` raises an exception with the same ``args`` in a process that does
    not have this package.
    """

    def __init__(self, code: str, message: str, object: str = "", field: str = "") -> None:
        super().__init__(code, message, object, field)
        self.code = code
        self.message = message
        self.object = object
        self.field = field

    @classmethod
    def from_json(cls, error: dict[str, Any]) -> RequestFailed:
        """Return the error for the values of :meth:`SharewrightError.to_json`."""
        return cls(error["code"], error["message"], error.get("object", ""), error.get("field", ""))

    def __str__(self) -> str:
        about = f" [{self.object}]" if self.object else ""
        field = f" (field {self.field})" if self.field else ""
        return f"{self.code}: {self.message}{about}{field}"
