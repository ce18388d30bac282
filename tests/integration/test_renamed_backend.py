"""A backend that is renamed in the configuration, or taken out of it, while it has shares."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy import func, insert, select, update

from scheduler.exits import EXIT_CONFIGURATION, EXIT_NOT_FOUND, EXIT_REFUSED
from tests.support.deployment import Deployment
from tests.support.services import ROOT, RedisServer, python
from worker.db.core.engine import reading, transaction
from worker.db.tables.audits import tombstones
from worker.db.tables.main import (
    access_rules,
    addresses,
    backends,
    operations,
    share_server_refs,
    share_servers,
    shares,
    snapshots,
    storage_pools,
)

ROLES: Final = (("scheduler",), ("worker",), ("reconciler",))


@pytest.fixture
def deployment(
    tmp_path: Path, postgres_url: str, redis_server: RedisServer
) -> Iterator[Deployment]:
    """A stopped deployment with a share of backend ``fake``; its configuration can be changed."""
    made = Deployment(tmp_path, postgres_url, redis_server)
    try:
        made.start()
        share = made.ask("create_share", size=1, share_network_id=made.network())
        made.ask("create_snapshot", share_id=share["id"])
        made.ask("allow_access", share_id=share["id"], access_to="10.0.0.9")
        made.settle()
        for process in made.processes.values():
            process.terminate()
        yield made
    finally:
        made.close()


def rename_section(deployment: Deployment, old: str, new: str, more: str = "") -> None:
    text = deployment.config_path.read_text()
    assert f"[backends.{old}]" in text
    deployment.config_path.write_text(text.replace(f"[backends.{old}]", f"[backends.{new}]{more}"))


def command(deployment: Deployment, *words: str, code: int = 0) -> dict[str, Any]:
    done = subprocess.run(
        python("scheduler.cli", "--json", "backend", *words),
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, **deployment.env},
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    document: dict[str, Any] = json.loads(done.stdout or done.stderr)
    return document


def rows_of(deployment: Deployment, backend: str) -> dict[str, int]:
    with reading(deployment.engine) as connection:
        return {
            table.name: connection.execute(
                select(func.count()).where(
                    (table.c.name if table is backends else table.c.backend) == backend
                )
            ).scalar_one()
            for table in (shares, share_servers, operations, storage_pools, backends)
        }


def one_share(deployment: Deployment) -> str:
    with reading(deployment.engine) as connection:
        return str(connection.execute(select(shares.c.id)).scalar_one())


def test_no_process_starts_without_a_backend_that_is_in_use(deployment: Deployment) -> None:
    rename_section(deployment, "fake", "other")
    for role in ROLES:
        ended = subprocess.run(
            python("scheduler.cli", *role),
            capture_output=True,
            text=True,
            timeout=60,
            cwd=ROOT,
            env={**os.environ, **deployment.env},
            check=False,
        )
        assert ended.returncode == EXIT_CONFIGURATION, (role, ended.stderr)
        assert "no backend fake, which has 1 shares, 1 share servers" in ended.stderr
        assert "sharewright backend rename fake NEW" in ended.stderr
        assert "Traceback" not in ended.stderr


def test_a_renamed_backend_goes_on_under_its_new_name(deployment: Deployment) -> None:
    command(
        deployment, "rename", "fake", "other", code=EXIT_REFUSED
    )  # the configuration comes first
    before = rows_of(deployment, "fake")
    with transaction(deployment.engine) as connection:
        # As flat_network has them, which takes its domain from the backend's name.
        connection.execute(
            insert(addresses).values(domain="flat:fake", number="a", address="10.9.9.9")
        )
    rename_section(deployment, "fake", "other")
    told = command(deployment, "rename", "fake", "other")
    state = deployment.directory / "backends"
    assert told["still_to_do"] == [
        f"on each host that has {state / 'fake'}, rename it to {state / 'other'}"
    ]
    (state / "fake").rename(state / "other")
    assert rows_of(deployment, "other") == before
    assert set(rows_of(deployment, "fake").values()) == {0}
    with reading(deployment.engine) as connection:
        domain = select(addresses.c.domain).where(addresses.c.address == "10.9.9.9")
        assert connection.execute(domain).scalar_one() == "flat:other"
    deployment.start()
    share_id = one_share(deployment)
    grown = deployment.ask("extend_share", share_id=share_id, new_size=2)
    assert grown["size"] == 2
    command(deployment, "rename", "fake", "other", code=EXIT_NOT_FOUND)


def test_what_a_rename_is_refused_for(deployment: Deployment) -> None:
    rename_section(deployment, "fake", "other")
    share_id = one_share(deployment)
    with transaction(deployment.engine) as connection:
        connection.execute(
            update(operations).where(operations.c.resource_id == share_id).values(phase="queued")
        )
    assert "under way" in str(command(deployment, "rename", "fake", "other", code=EXIT_REFUSED))
    with transaction(deployment.engine) as connection:
        connection.execute(update(operations).values(phase=None))
        row = connection.execute(select(share_servers)).one()
        theirs = {**row._asdict(), "id": "theirs", "backend": "other"}
        connection.execute(insert(share_servers).values(theirs))
    assert "of its own" in str(command(deployment, "rename", "fake", "other", code=EXIT_REFUSED))
    with transaction(deployment.engine) as connection:
        connection.execute(update(share_servers).values(backend="fake"))
    rename_section(deployment, "other", "other", '\nhost = "files1"')
    assert "on host files1" in str(
        command(deployment, "rename", "fake", "other", code=EXIT_REFUSED)
    )
    assert rows_of(deployment, "other")["shares"] == 0


def test_a_backend_is_forgotten_with_force_only_while_it_has_something(
    deployment: Deployment,
) -> None:
    share_id = one_share(deployment)
    assert "is in the configuration" in str(
        command(deployment, "forget", "fake", code=EXIT_REFUSED)
    )
    rename_section(deployment, "fake", "other")
    assert "--force" in str(command(deployment, "forget", "fake", code=EXIT_REFUSED))
    with reading(deployment.engine) as connection:
        held = select(func.count()).where(addresses.c.share_server_id.is_not(None))
        taken = connection.execute(held).scalar_one()
    told = command(deployment, "forget", "fake", "--force")
    assert [one["kind"] for one in told["forgotten"]] == ["snapshot", "share", "share_server"]
    assert share_id in str(told)
    with reading(deployment.engine) as connection:
        for table in (shares, share_servers, snapshots, access_rules, share_server_refs):
            assert connection.execute(select(func.count()).select_from(table)).scalar_one() == 0
        left = connection.execute(select(tombstones.c.id, tombstones.c.backend)).all()
        assert connection.execute(held).scalar_one() == taken  # never given out again
    assert {(one["id"], "fake") for one in told["forgotten"]} == {tuple(row) for row in left}
    deployment.start()
    assert deployment.ask("list_shares")["shares"] == []
    command(deployment, "forget", "fake", code=EXIT_NOT_FOUND)
