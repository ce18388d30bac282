"""What the log looks like: a line of text or of JSON, with the ids that the message is about."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

from pythonjsonlogger.json import JsonFormatter

from worker.config import LogSettings

_about: ContextVar[Mapping[str, str]] = ContextVar("about", default=MappingProxyType({}))
_IDS = ("operation", "request", "project")
_TEXT = "%(asctime)s %(levelname)-7s %(processName)s %(name)s: %(message)s"


@contextmanager
def about(**ids: str) -> Iterator[None]:
    """Put ``operation``, ``request`` and ``project`` on every record that is logged inside."""
    token = _about.set(ids)
    try:
        yield
    finally:
        _about.reset(token)


def subject(name: str) -> str:
    """The id under ``name`` that is put on records here and now; empty without one."""
    return _about.get().get(name, "")


class _Ids(logging.Filter):
    """Puts the ids of the step in hand on each record."""

    def filter(self, record: logging.LogRecord) -> bool:
        ids = _about.get()
        for name in _IDS:
            setattr(record, name, ids.get(name, ""))
        return True


def set_up_logging(settings: LogSettings) -> None:
    """Send everything to standard error, in the configured format and from the level up."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.format == "json":
        handler.setFormatter(
            JsonFormatter(
                "%(asctime)s %(levelname)s %(name)s %(process)d %(message)s"
                " %(operation)s %(request)s %(project)s",
                rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
            )
        )
    else:
        handler.setFormatter(logging.Formatter(_TEXT))
    handler.addFilter(_Ids())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    # At DEBUG it logs the first 1,024 characters of a message, in which the payload may begin.
    logging.getLogger("celery.pool").setLevel(max(root.level, logging.INFO))
