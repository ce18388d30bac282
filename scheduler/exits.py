"""What the command's exit codes mean, and how an error is told to a person and to a program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import click

from worker.errors import (
    ConfigurationError,
    ErrorCode,
    NotFound,
    Refused,
    RequestFailed,
    SharewrightError,
    StepError,
)

EXIT_DEFECT: Final = 1
EXIT_REFUSED: Final = 3
EXIT_FAILED: Final = 4
EXIT_NOT_FOUND: Final = 5
EXIT_TIMEOUT: Final = 6
EXIT_UNREACHABLE: Final = 7
EXIT_CONFIGURATION: Final = 8
EXIT_INTERRUPTED: Final = 130

_REFUSALS: Final = frozenset(
    {
        *(ErrorCode.INVALID_REQUEST, ErrorCode.CONFLICT, ErrorCode.FORBIDDEN),
        *(
            ErrorCode.IDEMPOTENCY_MISMATCH,
            ErrorCode.TOO_MANY_QUEUED,
            ErrorCode.NO_VALID_BACKEND,
            ErrorCode.QUOTA_EXCEEDED,
        ),
    }
)


class Unreachable(click.ClickException):
    """Neither database nor broker answers, or nobody takes requests in."""

    exit_code = EXIT_UNREACHABLE
    code = "unreachable"


class NotInTime(click.ClickException):
    """The operation goes on; only the waiting ended."""

    exit_code = EXIT_TIMEOUT
    code = "not_ended"


@dataclass(frozen=True, slots=True)
class Failure:
    """An error that is expected: its exit code, and the four parts of an error document."""

    exit_code: int
    code: str
    message: str
    object: str = ""
    field: str = ""

    def document(self) -> dict[str, Mapping[str, str]]:
        """Return what ``--json`` prints."""
        parts = {"code": self.code, "message": self.message}
        return {"error": {**parts, "object": self.object, "field": self.field}}

    def sentence(self) -> str:
        """Return what a person reads."""
        named = f" (field {self.field})" if self.field and self.field not in self.message else ""
        return f"{self.message}{named}"


def failure_of(error: Exception) -> Failure | None:
    """Describe an expected error; None for a defect."""
    if isinstance(error, click.ClickException):
        code = getattr(error, "code", "usage")
        return Failure(error.exit_code, code, error.format_message())
    if not isinstance(error, (SharewrightError, RequestFailed)):
        return None
    exit_code = exit_code_of(error)
    if exit_code is None:
        return None
    return Failure(exit_code, str(error.code), error.message, error.object, error.field)


def exit_code_of(error: Exception) -> int | None:
    """Return the exit code of an error of the service; None for a defect."""
    if isinstance(error, NotFound):
        return EXIT_NOT_FOUND
    if isinstance(error, Refused):
        return EXIT_REFUSED
    if isinstance(error, ConfigurationError):
        return EXIT_CONFIGURATION
    if isinstance(error, StepError):
        return EXIT_FAILED
    if isinstance(error, RequestFailed):
        if error.code == ErrorCode.NOT_FOUND:
            return EXIT_NOT_FOUND
        return EXIT_REFUSED if error.code in _REFUSALS else EXIT_FAILED
    return None
