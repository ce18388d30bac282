"""Name the queues. A hash assigns each backend to one of its worker group's queues."""

from __future__ import annotations

from typing import Final
from zlib import crc32

from worker.config import Config

REQUESTS: Final = "requests"
ADMIN_REQUESTS: Final = "requests.admin"
READ_REQUESTS: Final = "requests.read"
"""The queue of reads, so that reads do not wait behind changes, nor changes behind reads. Reads
that arrive in the other two queues are answered as well."""

_READ_PREFIXES: Final = ("list_", "show_")


def request_queue(verb: str, *, admin: bool = False) -> str:
    """Return the queue that a producer sends a verb to."""
    if admin:
        return ADMIN_REQUESTS
    return READ_REQUESTS if verb.startswith(_READ_PREFIXES) else REQUESTS


def step_queue(group: str, number: int) -> str:
    """Return the name of one of a worker group's queues."""
    return f"steps.{group}.{number}"


def group_of(queue: str) -> str:
    """Return the worker group that a step queue belongs to."""
    return queue.removeprefix("steps.").rpartition(".")[0]


def queues_of(config: Config, group: str) -> list[str]:
    """Return all queues of a worker group."""
    return [step_queue(group, number) for number in range(config.group(group).queues)]


def queue_for(config: Config, backend: str) -> str:
    """Return the queue of a backend's steps.

    It changes only when the backend's group or the group's number of queues does.

    Raises :class:`~worker.errors.ConfigurationError` for a backend that was renamed or removed.
    """
    group = config.backend(backend).worker_group
    return step_queue(group, crc32(backend.encode()) % config.group(group).queues)


def groups(config: Config) -> list[str]:
    """Return every worker group that serves a backend."""
    return sorted({backend.worker_group for backend in config.backends.values()})
