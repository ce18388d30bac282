"""One run: a project of its own, one request, one fault; then everything is deleted again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from tests.crash.matrix.cells import RECONCILER_POINT, Cell
from tests.crash.matrix.external import Finding
from tests.crash.matrix.lane import LEASE, LOOK_SECONDS, Lane
from worker.errors import ErrorCode

HANG_SECONDS: Final = 8.0
"""Longer than a step's timeout, then its lease, then the reconciler's next look."""
INTAKE_STOP_SECONDS: Final = 3.0
"""A scheduler that is stopped in its transaction holds up whoever sends the same id again."""
RESEND_SECONDS: Final = 2.0
HARM_SECONDS: Final = 0.5
"""What a process that was continued still wants to do, it does in this time."""
_RESULT_KEY: Final = "celery-task-meta-"
_LIVE: Final = {"pending", "running", "undoing"}
_OWN_TOKENS: Final = {
    "kill": "kill",
    "kill-main": "kill_main",
    "raise": "raise",
    "fatal": "fatal",
    "lost": "lost",
    "hang": f"hang {HANG_SECONDS}",
    "kill-twice": "kill",
}


class Broken(Exception):
    """A promise is broken, or the fault never struck; the run ends here."""

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind


class Run:
    """What a verb's play is handed: requests, faults and waiting, all of one project."""

    def __init__(self, lane: Lane, cell: Cell, grace: float) -> None:
        self.lane = lane
        self.cell = cell
        self.limit = LEASE + grace
        self.project = f"{cell.verb.name}-{uuid.uuid4().hex[:12]}"
        self.tokens = lane.tokens / self.project
        self.struck_at = 0.0
        self.longest = 0.0
        """Seconds from the fault to the end of all that was in flight."""
        self._pid_file = lane.directory / f"{self.project}.pid"
        self._anyone: Path | None = None
        """A token that is not this project's alone."""
        self._continued = False

    async def request(self, verb: str, *, admin: bool = False, **fields: Any) -> str:
        """Send until the operation is there; return its id."""
        operation_id = str(uuid.uuid4())
        payload = {"version": 1, "context": {"project_id": self.project}, **fields}
        began = sent = 0.0
        while operation_id not in self.operations:
            now = time.monotonic()
            began = began or now
            if now - sent > RESEND_SECONDS:
                self.lane.client.send(verb, payload, operation_id=operation_id, admin=admin)
                sent = now
            if self._stopped_at_intake() and now - self._struck() > INTAKE_STOP_SECONDS:
                self.go_on()
            if now - began > self.limit + INTAKE_STOP_SECONDS:
                raise Broken("lost", f"{verb} was sent again and again and never accepted")
            refusal = self._result(operation_id)
            # An operation that failed is in the journal by now, and is seen at the second look.
            await asyncio.sleep(LOOK_SECONDS * 3 if refusal else LOOK_SECONDS)
            if refusal and refusal["status"] == "FAILURE" and operation_id not in self.operations:
                if refusal["result"]["exc_message"][0] != ErrorCode.INTERNAL:
                    raise Broken("lost", f"{verb} was refused: {refusal['result']}")
                # The intake met the fault, changed nothing and said so: the producer sends again.
                self.lane.results.delete(_RESULT_KEY + operation_id)
                sent = 0.0
        return operation_id

    @property
    def operations(self) -> dict[str, dict[str, Any]]:
        """The project's operations as they were a moment ago."""
        return self.lane.operations[self.project]

    async def ask(self, verb: str, **fields: Any) -> dict[str, Any]:
        """Request, wait for all of the project to come to rest, return the object."""
        operation_id = await self.request(verb, **fields)
        await self.rest()
        row = self.operations[operation_id]
        if row["state"] != "succeeded":
            raise Broken("lost", f"{verb} without a fault ended {row['state']}: {row['error']}")
        result = row["result"]
        return dict(json.loads(result) if isinstance(result, str) else result)

    async def until(self, condition: Callable[[], bool], kind: str, what: str) -> None:
        """Wait for a condition; broken if it takes longer than lease and grace."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > self.limit:
                raise Broken(kind, f"not within {self.limit:g} s: {what}")
            await asyncio.sleep(LOOK_SECONDS)

    async def rest(self) -> None:
        """Wait until nothing of the project is in flight."""
        await self.until(self._at_rest, "stuck", "every operation has ended")

    def _at_rest(self) -> bool:
        return all(
            row["state"] not in _LIVE and row["phase"] is None for row in self.operations.values()
        )

    def arm(self) -> None:
        """Let the cell's fault, and what must come before it, strike this project."""
        verb, point, fault = self.cell.verb, self.cell.point, self.cell.fault
        action, _, stage = point.rpartition(".")
        self.tokens.mkdir()
        if verb.compensation_of is not None:
            # A failure that nobody could write down is met again by the next attempt.
            for number in range(2 if point == f"{verb.compensation_of}.failed" else 1):
                self.token(f"{verb.compensation_of}.after_effect", "fatal", number)
        if stage == "failed" and action != verb.compensation_of:
            self.token(f"{action}.before", "raise")
        if fault == "stale":
            self.token("get_share_server.after_commit", "kill")
        call = verb.call_of(action)
        if fault == "lost" and call is not None:
            self.world.arm(call, "retryable_after_effect", match=self.project)
            return
        action = _OWN_TOKENS.get(fault, f"stop {self._pid_file}")
        if point == RECONCILER_POINT:
            self.token("create_share.before", "kill")
            self._anyone = self._write(self.lane.tokens / f"{point}@{self.project}", action)
            return
        for number in range(2 if fault == "kill-twice" else 1):
            self.token(point, action, number)

    @property
    def world(self) -> Any:
        """The outside world of the cell's backend."""
        return self.lane.worlds[self.cell.verb.mode]

    def token(self, point: str, action: str, number: int = 0) -> Path:
        """Arm one firing; it is complete before anybody sees it."""
        return self._write(self.tokens / f"{point}@{number}", action)

    def _write(self, token: Path, action: str) -> Path:
        new = self.tokens / "new"
        new.write_text(action)
        return new.rename(token)

    def has_struck(self) -> bool:
        """Whether everything that was armed has gone off."""
        struck = not list(self.tokens.iterdir())
        if self._anyone is not None:
            struck = struck and not self._anyone.exists()
        if self.cell.fault == "lost":
            left = self.lane.external.world_rows(
                f"SELECT id FROM faults WHERE match = '{self.project}'"
            )
            struck = struck and not left
        if struck and not self.struck_at:
            self.struck_at = time.monotonic()
        return struck

    def _struck(self) -> float:
        self.has_struck()
        return self.struck_at or time.monotonic()

    def _stopped_at_intake(self) -> bool:
        return (
            self.cell.fault == "stop"
            and self.cell.point == "intake.before_commit"
            and self._pid_file.exists()
            and not self._continued
        )

    def go_on(self) -> None:
        """SIGCONT to what was stopped, once."""
        if self._pid_file.exists() and not self._continued:
            self._continued = True
            with suppress(ProcessLookupError):
                os.kill(int(self._pid_file.read_text()), signal.SIGCONT)

    async def judged(self, asked: dict[str, set[str]]) -> None:
        """Wait for the end of what was asked; compare what is there. ``asked``: ids, how ended."""
        await self.until(self.has_struck, "void", f"the fault strikes: {self._armed()}")
        await self.rest()
        self.longest = max(self.longest, time.monotonic() - self.struck_at)
        for operation_id, states in asked.items():
            row = self.operations[operation_id]
            if row["state"] not in states:
                raise Broken("lost", f"ended {row['state']} ({row['error']}), not {states}")
        await self.until(
            lambda: all(self._answered(one) for one in asked), "lost", "every result is stored"
        )
        self.compare()

    def _armed(self) -> list[str]:
        return sorted(path.name for path in self.tokens.iterdir())

    def _result(self, operation_id: str) -> dict[str, Any] | None:
        stored = self.lane.results.get(_RESULT_KEY + operation_id)
        return json.loads(stored) if isinstance(stored, bytes) else None

    def _answered(self, operation_id: str) -> bool:
        wanted = "SUCCESS" if self.operations[operation_id]["state"] == "succeeded" else "FAILURE"
        result = self._result(operation_id)
        return result is not None and result["status"] == wanted

    def compare(self) -> None:
        """What stands outside is what the rows say."""
        findings: list[Finding] = list(self.lane.external.standing(self.project))
        if findings:
            raise Broken(findings[0].kind, "; ".join(one.sentence for one in findings))

    async def clear(self) -> None:
        """Delete all that the project has."""
        rows = self.lane.external.rows
        for table, verb, field in (
            ("snapshots", "delete_snapshot", "snapshot_id"),
            ("shares", "delete_share", "share_id"),
            ("share_networks", "delete_share_network", "share_network_id"),
        ):
            found = rows(f"SELECT id FROM {table} WHERE project_id = :own", own=self.project)
            for row in found:
                await self.request(verb, **{field: row["id"]})
            await self.rest()
        self.compare()
