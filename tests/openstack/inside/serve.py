"""Serves one OpenStack API on 127.0.0.1, in a Python that has it.

Usage: serve.py MODULE PORT   (the WSGI application is MODULE.application)
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from cheroot.wsgi import Server
from sqlalchemy import event
from sqlalchemy.engine import Engine

THREADS = 8


@event.listens_for(Engine, "connect")
def _be_patient(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA busy_timeout = 30000")
    connection.execute("PRAGMA synchronous = OFF")


@event.listens_for(Engine, "before_cursor_execute", retval=True)
def _lock_at_once(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> Any:
    # SQLite refuses a reading transaction that turns into a writing one beside another writer.
    return ("BEGIN IMMEDIATE" if statement == "BEGIN" else statement), parameters


def serve(application: Any, port: int) -> None:
    """Serve a WSGI application until the process is ended."""
    server = Server(
        ("127.0.0.1", port),
        application,
        numthreads=THREADS,
        max=THREADS,
        request_queue_size=128,
        server_name="127.0.0.1",
    )
    server.safe_start()


def main(module: str, port: int) -> None:
    sys.argv = [module]  # the applications parse it themselves when they are imported
    serve(importlib.import_module(module).application, port)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
