"""An operation's steps as they are done: redrawn on a terminal, line by line elsewhere.

All of it goes to standard error; standard output has the result only.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

_MARKS: Final = {"done": ("+", "green"), "undone": ("-", "yellow"), "failed": ("!", "red")}


def _line(step: Mapping[str, Any]) -> str:
    attempt = f", attempt {step['attempt']}" if step["attempt"] > 1 else ""
    message = f": {step['message']}" if step["message"] else ""
    mark = _MARKS.get(step["outcome"], ("*", ""))[0]
    return f"{mark} {step['task']} {step['outcome']} ({step['seconds']:.2f} s{attempt}){message}"


def _now(operation: Mapping[str, Any]) -> str:
    task, phase, state = operation["task"], operation["phase"], operation["state"]
    if phase is None:
        return f"{operation['verb']} {state}"
    doing = f"undoing: {task}" if state == "undoing" else task
    if phase == "waiting":
        return f"{doing} waits" + (
            f" for {operation['waits_for']}" if operation["waits_for"] else ""
        )
    attempt = f", attempt {operation['attempts']}" if operation["attempts"] > 1 else ""
    return f"{doing} {phase}{attempt}"


class Timeline:
    """Shows one operation again and again; quiet when a program reads the output."""

    def __init__(self, *, quiet: bool) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        self._live: Live | None = None
        self._printed = 0
        self._last = ""

    def __enter__(self) -> Self:
        """Begin; on a terminal, what is shown is drawn over."""
        if self._console.is_terminal and not self._console.quiet:
            self._live = Live(console=self._console, refresh_per_second=10)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave what was shown last."""
        if self._live is not None:
            self._live.stop()

    def show(self, operation: Mapping[str, Any]) -> None:
        """Show how far it is."""
        if self._live is not None:
            self._live.update(self._drawn(operation))
            return
        for step in operation["steps"][self._printed :]:
            self._console.print(Text(_line(step)), soft_wrap=True)
        self._printed = len(operation["steps"])
        now = _now(operation)
        if operation["phase"] in {None, "waiting"} and now != self._last:
            self._console.print(Text(f"= {now}"), soft_wrap=True)
            self._last = now

    def _drawn(self, operation: Mapping[str, Any]) -> Group:
        steps = [
            Text(_line(step), style=_MARKS.get(step["outcome"], ("", ""))[1])
            for step in operation["steps"]
        ]
        if operation["phase"] is None:
            return Group(
                Text(f"{operation['verb']} {operation['id']}"), *steps, Text(_now(operation))
            )
        now = Spinner("dots", Text(_now(operation)))
        return Group(Text(f"{operation['verb']} {operation['id']}"), *steps, now)
