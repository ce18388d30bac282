"""Set up logging: lines of text or JSON, with the ids of operation, request and project."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final

from pythonjsonlogger.json import JsonFormatter

from worker.config import LogSettings

_about: ContextVar[Mapping[str, str]] = ContextVar("about", default=MappingProxyType({}))
_IDS = ("operation", "request", "project")
FIELDS: Final = {
    "time": "when it was written: ISO 8601 with the zone",
    "level": "`DEBUG`, `INFO`, `WARNING`, `ERROR` or `CRITICAL`",
    "logger": "the module that says it",
    "process": "its process id",
    "message": "a sentence",
    "operation": "the operation that it is about; empty without one",
    "request": "that request's `request_id`, as its producer gave it",
    "project": "the project that it is about",
    "exc_info": "the traceback of a defect, where there is one",
}
"""The fields of a JSON line; there are no others."""
_TEXT = "%(asctime)s %(levelname)-7s %(processName)s %(name)s: %(message)s"


@contextmanager
def about(**ids: str) -> Iterator[None]:
    """Add the ids ``operation``, ``request`` and ``project`` to all records logged in the block."""
    token = _about.set(ids)
    try:
        yield
    finally:
        _about.reset(token)


def subject(name: str) -> str:
    """Return the current ``operation``, ``request`` or ``project`` id; empty if there is none."""
    return _about.get().get(name, "")


class _Ids(logging.Filter):
    """Add the current ids to each record."""

    def filter(self, record: logging.LogRecord) -> bool:
        ids = _about.get()
        for name in _IDS:
            setattr(record, name, ids.get(name, ""))
        return True


class _Times(logging.Formatter):
    """Formats times as ISO 8601, with the time zone."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - logging's own name
        del datefmt
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


class _Json(_Times, JsonFormatter):
    """Writes the documented fields only, not those that a library adds to its records."""

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        return {name: log_data[name] for name in FIELDS if name in log_data}


def set_up_logging(settings: LogSettings) -> None:
    """Send log records from the configured level up to standard error, in the configured format."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.format == "json":
        handler.setFormatter(
            _Json(
                "%(asctime)s %(levelname)s %(name)s %(process)d %(message)s"
                " %(operation)s %(request)s %(project)s",
                rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
            )
        )
    else:
        handler.setFormatter(_Times(_TEXT))
    handler.addFilter(_Ids())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    logging.captureWarnings(True)
    # Celery logs two lines per message, without the operation's id; the engine logs one line per
    # step, with it. Alembic logs ten lines at every start.
    for name in ("celery.worker.strategy", "celery.app.trace", "alembic"):
        quiet = root.level > logging.DEBUG
        logging.getLogger(name).setLevel(max(root.level, logging.WARNING) if quiet else 0)
    # At DEBUG this logger shows the first 1,024 characters of a message, and so parts of payloads.
    logging.getLogger("celery.pool").setLevel(max(root.level, logging.INFO))
