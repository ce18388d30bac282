"""Calls of a plug-in as the engine makes them: repeated while not ready, or losing the lease."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

import pytest

from worker.errors import LeaseLost, NotReady
from worker.model import AccessRule, RequestContext

Answer = TypeVar("Answer")

WAIT_LIMIT: Final = 60.0
"""Seconds after which a call that is still not ready fails the test."""


class GuardThatEnds:
    """A guard that succeeds ``allowed`` times and then reports a lost lease."""

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed

    def __call__(self) -> None:
        """Count the call, or raise :class:`~worker.errors.LeaseLost`."""
        if self.allowed <= 0:
            raise LeaseLost("The lease is another worker's now.")
        self.allowed -= 1


def context(guard: Callable[[], None] = lambda: None) -> RequestContext:
    """Return the context of a call; by default the lease is never lost."""
    return RequestContext(project_id="project", operation_id="operation", guard=guard)


def rule(access_to: str, level: str = "rw") -> AccessRule:
    """Return an access rule for an address or a CIDR."""
    return AccessRule(str(uuid.uuid4()), "ip", access_to, level)


def patiently(call: Callable[[], Answer]) -> Answer:
    """Repeat a call, as the engine does, until the plug-in is ready; return its result."""
    deadline = time.monotonic() + WAIT_LIMIT
    while True:
        try:
            return call()
        except NotReady as wait:
            if time.monotonic() > deadline:
                pytest.fail(f"not within {WAIT_LIMIT:g} s: {wait.message}")
            time.sleep(min(wait.retry_after, 1))


def interrupted_everywhere(call: Callable[[RequestContext], Any]) -> Any:
    """Repeat a call, losing the lease one guard later each time, until it succeeds."""
    for allowed in range(500):
        given = context(GuardThatEnds(allowed))
        try:
            return patiently(partial(call, given))
        except LeaseLost:
            continue
    pytest.fail("the call never ends, or calls guard() more than 500 times")
