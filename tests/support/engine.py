"""The engine in this very process: requests are taken in and steps done when a test says so."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select, update

from scheduler.acceptance.accept import take_in
from scheduler.acceptance.handlers import HANDLERS
from scheduler.placement.pool_cache import cache_for
from scheduler.requests.base import digest, parse
from scheduler.requests.verbs import VERBS
from tests.support.audits import AuditBench
from tests.support.deployment import FAKE_BACKEND
from tests.support.intake import share_network_of
from worker.db.core.engine import db_now, reading, transaction
from worker.db.operations import recovery
from worker.db.operations.values import Dispatch
from worker.db.tables.all import metadata
from worker.db.tables.main import operation_steps, operations, share_networks, shares
from worker.engine.runner import run
from worker.engine.saga import Action
from worker.model import Phase
from worker.systems.fake_world import World
from worker.tasks.periodic.pool_reports import report_pools


class EngineBench(AuditBench):
    """The fakes, with an engine that keeps its messages in ``dispatches`` for :meth:`drive`."""

    def __init__(self, directory: Path, url: str, settings: str = "") -> None:
        super().__init__(directory, url, "fake", settings + FAKE_BACKEND)
        self.dispatches: list[Dispatch] = []
        self.results: dict[str, Any] = {}
        self.runtime.publish = self.dispatches.append
        self.runtime.store_result = self._store
        report_pools(self.runtime, ["fake"])
        values = share_network_of("p1")
        with transaction(self.engine) as connection:
            connection.execute(insert(share_networks).values(values))
        self.network_id = str(values["id"])

    def _store(self, operation_id: str, result: Any, error: Any) -> None:
        self.results[operation_id] = error or result

    @property
    def world(self) -> World:
        return World(self.config.state_dir / "backends" / "fake" / "world.db")

    def ask(self, verb: str, **fields: Any) -> str:
        """Take a request in, as the scheduler does; return the operation's id."""
        known, operation_id = VERBS[verb], str(uuid.uuid4())
        request = parse(known, {"version": 1, "context": {"project_id": "p1"}, **fields})
        take_in(
            self.runtime,
            cache_for(self.config, self.engine),
            known,
            HANDLERS[verb],
            request,
            operation_id=operation_id,
            digest=digest(known, request),
            is_admin=known.admin,
            heard=lambda: None,
        )
        return operation_id

    def create(self) -> str:
        return self.ask("create_share", size=1, share_network_id=self.network_id)

    def operator(self, verb: str, operation_id: str) -> dict[str, Any]:
        """Do what an administrator asks; return the result."""
        asked = self.ask(f"{verb}_operation", operation_id=operation_id)
        return dict(self.results[asked])

    def drive(self, steps: int = 100) -> None:
        """Deliver the messages, oldest first, for at most so many steps in all."""
        while self.dispatches and steps > 0:
            dispatch = self.dispatches.pop(0)
            saga = self.runtime.sagas.find(dispatch.saga, dispatch.saga_version)
            assert saga is not None, "the bench knows what it accepts"
            for action in saga.chain(dispatch.task, undoing=dispatch.undoing):
                steps -= 1
                if not self.deliver(action, dispatch) or steps == 0:
                    break

    def deliver(self, action: Action, dispatch: Dispatch) -> bool:
        return bool(run(self.runtime, action, dispatch.operation_id, dispatch.dispatch))

    def pass_time(self) -> None:
        """Every wait is over: what the reconciler does with it."""
        with transaction(self.engine) as connection:
            connection.execute(
                update(operations)
                .where(operations.c.phase == Phase.WAITING.value)
                .values(due_at=db_now() - 1)
            )
            late = recovery.due(connection, (Phase.WAITING,), 10, known=self.runtime.sagas.versions)
            self.dispatches += recovery.redrive(connection, late, republish_after=30)

    def wake_due(self) -> int:
        """What is due at this very moment, without time passing."""
        with transaction(self.engine) as connection:
            late = recovery.due(connection, (Phase.WAITING,), 10, known=self.runtime.sagas.versions)
            dispatches = recovery.redrive(connection, late, republish_after=30)
        self.dispatches += dispatches
        return len(dispatches)

    def operation(self, operation_id: str) -> Any:
        with reading(self.engine) as connection:
            return connection.execute(
                select(operations).where(operations.c.id == operation_id)
            ).one()

    def steps(self, operation_id: str) -> list[tuple[str, str]]:
        o = operation_steps.c
        with reading(self.engine) as connection:
            rows = connection.execute(
                select(o.task, o.outcome).where(o.operation_id == operation_id).order_by(o.seq)
            )
            return [(row.task, row.outcome) for row in rows]

    def share_row(self) -> Any:
        with reading(self.engine) as connection:
            return connection.execute(select(shares)).first()

    def rows(self, table: str) -> list[Any]:
        with reading(self.engine) as connection:
            return list(connection.execute(select(metadata.tables[table])).all())

    def external(self) -> dict[str, int]:
        world = self.world
        return {
            "shares": len(world.shares()),
            "snapshots": len(world.snapshots()),
            "servers": len(world.servers()),
            "ports": len(world.ports()),
        }


NOTHING = {"shares": 0, "snapshots": 0, "servers": 0, "ports": 0}
