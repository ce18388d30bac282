"""Accepting operations: one place writes them all, whoever asks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from sqlalchemy import select, update

from tests.support.engine import EngineBench
from worker.db.core.engine import db_now, reading, transaction
from worker.db.tables.main import backends, operations, share_servers
from worker.engine.saga import Sagas
from worker.tasks.audit import ask_for_audits
from worker.tasks.periodic.reconciler import Reconciler
from worker.tasks.periodic.server_checks import check_share_servers
from worker.tasks.sagas import SAGAS

VERSION_2 = Sagas(
    [*SAGAS, *(dataclasses.replace(saga, version=2) for saga in SAGAS if saga.version == 1)]
)


def _reconciler(bench: EngineBench) -> Reconciler:
    def nothing(*_: Any) -> int:
        return 0

    return Reconciler(bench.runtime, nothing, nothing, nothing, nothing)


def _versions(bench: EngineBench) -> dict[str, set[int]]:
    versions: dict[str, set[int]] = {}
    o = operations.c
    with reading(bench.engine) as connection:
        for row in connection.execute(select(o.saga, o.saga_version).where(o.saga != "")):
            versions.setdefault(row.saga, set()).add(row.saga_version)
    return versions


def test_every_operation_carries_the_version_of_its_saga(tmp_path: Path, sqlite_url: str) -> None:
    """Those that are asked for, and those that the system starts by itself."""
    with EngineBench(tmp_path, sqlite_url, "[engine]\naudit_interval = 3600.0\n") as bench:
        bench.runtime.sagas = VERSION_2
        bench.create()
        bench.drive()
        share = bench.share_row()
        bench.ask("extend_share", share_id=share.id, new_size=2)
        bench.ask(
            "allow_access",
            share_id=share.id,
            access_type="ip",
            access_to="10.0.0.1",
            access_level="rw",
        )
        bench.ask("create_snapshot", share_id=share.id)
        bench.drive()
        # Repairs that the watch starts.
        for broken in (bench.world.stop_server, bench.world.lose_server):
            broken(share.share_server_id)
            check_share_servers(bench.runtime, ["fake"])
            bench.drive()
        # An administrator's ensure, and the operation that it starts for each share.
        bench.ask("ensure_share_servers")
        bench.drive()
        # The periodic audit.
        with transaction(bench.engine) as connection:
            connection.execute(update(backends).values(audit_due_at=db_now() - 1))
        ask_for_audits(bench.runtime)
        bench.drive()
        (snapshot,) = bench.rows("snapshots")
        bench.ask("delete_snapshot", snapshot_id=snapshot.id)
        bench.drive()
        bench.ask("delete_share", share_id=share.id)
        bench.drive()
        versions = _versions(bench)
    assert set(versions) == {
        "create_share",
        "extend_share",
        "allow_access",
        "create_snapshot",
        "ensure_share_server",
        "ensure_share",
        "audit_backend",
        "delete_snapshot",
        "delete_share",
        "clean_up_share_server",
    }
    assert set.union(*versions.values()) == {2}, versions


def test_the_clean_up_of_an_idle_server_carries_the_version_of_its_saga(
    tmp_path: Path, sqlite_url: str
) -> None:
    settings = "[engine]\nunused_share_server_cleanup_interval = 60.0\n"
    with EngineBench(tmp_path, sqlite_url, settings) as bench:
        bench.runtime.sagas = VERSION_2
        bench.create()
        bench.drive()
        bench.ask("delete_share", share_id=bench.share_row().id)
        bench.drive()
        with transaction(bench.engine) as connection:
            connection.execute(update(share_servers).values(idle_since=db_now() - 61))
        _reconciler(bench).one_pass()
        bench.drive()
        assert _versions(bench)["clean_up_share_server"] == {2}
        assert not bench.rows("share_servers")


def test_one_audit_of_a_backend_is_live_at_a_time(tmp_path: Path, sqlite_url: str) -> None:
    with EngineBench(tmp_path, sqlite_url) as bench:
        assert bench.begin(repair=False) is not None
        assert bench.begin(repair=False) is None
