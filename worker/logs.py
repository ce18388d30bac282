"""What the log looks like: a line of text or of JSON, with the ids that the message is about."""

from __future__ import annotations

import logging
import sys

from pythonjsonlogger.json import JsonFormatter

from worker.config import LogSettings

_TEXT = "%(asctime)s %(levelname)-7s %(processName)s %(name)s: %(message)s"


def set_up_logging(settings: LogSettings) -> None:
    """Send everything to standard error, in the configured format and from the level up."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.format == "json":
        handler.setFormatter(
            JsonFormatter(
                "%(asctime)s %(levelname)s %(name)s %(process)d %(message)s",
                rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
            )
        )
    else:
        handler.setFormatter(logging.Formatter(_TEXT))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
