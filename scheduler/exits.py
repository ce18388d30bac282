"""What the command's exit codes mean, and which error comes to which."""

from __future__ import annotations

from typing import Final

import click

from worker.errors import ConfigurationError, ErrorCode, NotFound, Refused, RequestFailed, StepError

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
        *(ErrorCode.IDEMPOTENCY_MISMATCH, ErrorCode.TOO_MANY_QUEUED, ErrorCode.NO_VALID_BACKEND),
    }
)


class Unreachable(click.ClickException):
    """Neither database nor broker answers, or nobody takes requests in."""

    exit_code = EXIT_UNREACHABLE


class NotInTime(click.ClickException):
    """The operation goes on; only the waiting ended."""

    exit_code = EXIT_TIMEOUT


def exit_code_of(error: Exception) -> int | None:
    """Return the exit code of an expected error; None for a defect."""
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


def sentence_of(error: Exception) -> str:
    """Return what an expected error says to a person."""
    message = getattr(error, "message", "") or str(error)
    field = getattr(error, "field", "")
    return f"{message} (field {field})" if field and field not in message else str(message)
