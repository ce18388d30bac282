"""A deployment whose outside is the fakes' world, and what tests ask of both."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from sqlalchemy import func, not_, select

from tests.support.deployment import Deployment
from tests.support.pace import limit
from worker.db.audits import is_undone
from worker.db.core.engine import reading
from worker.db.tables.main import (
    operation_steps,
    operations,
    share_server_refs,
    share_servers,
    shares,
)
from worker.errors import RequestFailed
from worker.systems.fake_world import World


class Fakes(Deployment):
    """A deployment whose outside is the fakes' world."""

    @property
    def world(self) -> World:
        return World(self.directory / "backends" / "fake" / "world.db")

    def steps_of(self, operation_id: str) -> list[tuple[str, str]]:
        with reading(self.engine) as connection:
            rows = connection.execute(
                select(operation_steps.c.task, operation_steps.c.outcome)
                .where(operation_steps.c.operation_id == operation_id)
                .order_by(operation_steps.c.seq)
            )
            return [(row.task, row.outcome) for row in rows]

    def count(self, table: Any) -> int:
        with reading(self.engine) as connection:
            return int(connection.execute(select(func.count()).select_from(table)).scalar_one())

    def count_available(self) -> int:
        with reading(self.engine) as connection:
            available = shares.c.status == "available"
            return int(
                connection.execute(
                    select(func.count()).select_from(shares).where(available)
                ).scalar_one()
            )

    def create(self, network: str, **fields: Any) -> str:
        """Ask for a share; return its operation, which may have failed by now."""
        operation_id = str(uuid.uuid4())
        asked = self.payload(size=1, share_network_id=network, **fields)
        try:
            return self.client.submit("create_share", asked, operation_id=operation_id)
        except RequestFailed:
            with reading(self.engine) as connection:
                accepted = select(operations.c.id).where(operations.c.id == operation_id)
                if connection.execute(accepted).first() is None:
                    raise
            return operation_id

    def failure(self, operation_id: str) -> RequestFailed:
        with pytest.raises(RequestFailed) as caught:
            self.client.result(operation_id, timeout=limit())
        return caught.value

    def left_servers(self) -> list[str]:
        """The statuses of all share servers, but for records of builds that failed."""
        with reading(self.engine) as connection:
            return list(
                connection.execute(
                    select(share_servers.c.status).where(not_(is_undone()))
                ).scalars()
            )

    def assert_nothing_external(self) -> None:
        world = self.world
        assert (world.shares(), world.servers(), world.ports()) == ([], [], [])
        assert self.left_servers() == []
        assert self.count(share_server_refs) == 0
