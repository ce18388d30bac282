"""What becomes of an error that a step raises."""

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
from worker.errors import ConfigurationError, ErrorCode, Fatal
from worker.tasks.sagas import ACTIONS

SENTENCE = "The directory cannot hold a file server; change state_dir."


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (ConfigurationError(SENTENCE), "configuration"),
        (Fatal(SENTENCE, code=ErrorCode.STORAGE_FAILED), "storage_failed"),
    ],
)
def test_the_producer_gets_code_sentence_and_object(
    tmp_path: Path,
    sqlite_url: str,
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    code: str,
) -> None:
    """And the step is not tried again: it would not go better."""
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
    payload = {"version": 1, "context": {"project_id": "p1"}, "share_id": share, "new_size": 2}
    take_in(config, "extend_share", payload, "extend")
    runtime: Any = make_app(config).sharewright_runtime()

    def refuse(*_: Any) -> None:
        raise raised

    manager = type(runtime.manager("small"))
    monkeypatch.setattr(manager, "extend_share", refuse)
    monkeypatch.setattr(manager, "share_size", lambda *_: 1)
    try:
        run(runtime, ACTIONS["extend_share"], "extend", 1)
    finally:
        runtime.heartbeat.stop()
    with transaction(engine) as connection:
        operation = connection.execute(select(operations)).one()
    assert operation.state == "failed"
    assert operation.error == {
        "code": code,
        "message": SENTENCE,
        "object": f"share {share}",
        "field": "",
    }
