"""A delete that is accepted while another step is at the driver: that step ends, at once."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select

from tests.support.intake import BACKENDS, take_in
from tests.support.tables import tables
from worker.app import make_app
from worker.config import load
from worker.db.core.engine import db_now, transaction
from worker.db.tables.main import operations, shares
from worker.engine.runner import run
from worker.errors import ErrorCode, Fatal
from worker.tasks.sagas import ACTIONS


@pytest.mark.parametrize("during", ["extend_share", "share_size"])
def test_a_delete_during_an_extend_does_not_wait_for_its_lease(
    tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch, during: str
) -> None:
    """Accepted while the driver extends, or while what came of a failure is read back."""
    engine = tables(sqlite_url)
    path = tmp_path / "sharewright.toml"
    path.write_text(
        f'state_dir = "{tmp_path}"\n[database]\nurl = "{sqlite_url}"\n'
        '[broker]\nurl = "memory://"\nresult_backend = "cache+memory://"\n' + BACKENDS
    )
    config = load(path)
    share = str(uuid.uuid4())
    with transaction(engine) as connection:
        connection.execute(
            insert(shares).values(
                id=share,
                project_id="p1",
                metadata={},
                size=1,
                share_proto="NFS",
                backend="small",
                pool="pool",
                allocated_gib=2,
                status="available",
                export_locations=[],
                created_at=db_now(),
                updated_at=db_now(),
            )
        )
    context = {"version": 1, "context": {"project_id": "p1"}, "share_id": share}
    take_in(config, "extend_share", {**context, "new_size": 2}, "extend")
    runtime: Any = make_app(config).sharewright_runtime()

    def overtaken(capability: str) -> Any:
        def call(*_: Any) -> int:
            if capability == during:
                take_in(config, "delete_share", context, "delete")
            elif capability == "extend_share":
                raise Fatal("no", code=ErrorCode.INTERNAL)
            return 2

        return call

    for name in ("extend_share", "share_size"):
        monkeypatch.setattr(type(runtime.manager("small")), name, overtaken(name))
    try:
        run(runtime, ACTIONS["extend_share"], "extend", 1)
    finally:
        runtime.heartbeat.stop()
    with transaction(engine) as connection:
        states = {
            row.id: row.state
            for row in connection.execute(select(operations.c.id, operations.c.state))
        }
        status = connection.execute(select(shares.c.status)).scalar_one()
    assert status == "deleting"
    assert states["delete"] == "running", "the extend has ended, and the delete has begun"
