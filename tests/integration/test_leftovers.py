"""Tests of a test: what ``make run`` compares at its end finds one of each leftover."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import insert, update

from tests.support import leftovers
from tests.support.services import require_root
from tests.support.tenants import Machine, run
from worker.db.core.engine import engine_for, transaction
from worker.db.schema import upgrade
from worker.db.tables.all import metadata

Planted = Callable[[Path, str], AbstractContextManager[None]]


@contextmanager
def a_namespace(_directory: Path, mark: str) -> Iterator[None]:
    run("ip", "netns", "add", mark)
    try:
        yield
    finally:
        run("ip", "netns", "del", mark)


@contextmanager
def a_link(_directory: Path, mark: str) -> Iterator[None]:
    run("ip", "link", "add", mark[:12], "type", "bridge")
    try:
        yield
    finally:
        run("ip", "link", "del", mark[:12])


@contextmanager
def a_mount(directory: Path, mark: str) -> Iterator[None]:
    target = directory / mark
    target.mkdir()
    run("mount", "-t", "tmpfs", mark, str(target))
    try:
        yield
    finally:
        run("umount", str(target))


@contextmanager
def a_loop(directory: Path, mark: str) -> Iterator[None]:
    image = directory / f"{mark}.img"
    run("truncate", "-s", "1M", str(image))
    device = run("losetup", "--find", "--show", str(image)).strip()
    try:
        yield
    finally:
        run("losetup", "--detach", device)


@contextmanager
def a_process(_directory: Path, mark: str) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)", f"sharewright-{mark}"]
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("kind", "plant"),
    [
        ("namespaces", a_namespace),
        ("links", a_link),
        ("mounts", a_mount),
        ("loops", a_loop),
        ("processes", a_process),
    ],
)
def test_the_machine_is_compared(tmp_path: Path, kind: str, plant: Planted) -> None:
    require_root()
    mark = f"swl{uuid.uuid4().hex[:12]}"
    before = Machine.look()
    with plant(tmp_path, mark):
        found = [s for s in leftovers.of_machine(before, Machine.look()) if mark[:12] in s]
    assert any(sentence.startswith(f"{kind}: left behind") for sentence in found), found
    after = [s for s in leftovers.of_machine(before, Machine.look()) if mark[:12] in s]
    assert after == []


def test_the_tables_are_counted(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/sharewright.db"
    upgrade(url)
    engine = engine_for(url)
    assert list(leftovers.of_tables(engine)) == []
    pools = metadata.tables["storage_pools"]
    addresses = metadata.tables["addresses"]
    with transaction(engine) as connection:
        connection.execute(
            insert(metadata.tables["share_server_refs"]).values(
                share_id="s", share_server_id="v", operation_id="o", gib=1
            )
        )
        connection.execute(
            insert(pools).values(
                backend="b",
                name="p",
                total_gib=1,
                free_gib=1,
                capabilities={},
                reported_at=0.0,
                allocated_gib=1,
            )
        )
        connection.execute(
            insert(addresses).values(
                domain="d", number="0", address="10.0.0.1", share_server_id="v"
            )
        )
    found = "\n".join(leftovers.of_tables(engine))
    assert "share_server_refs still has 1 row" in found
    assert "pool of backend b is still promised" in found
    assert "address 10.0.0.1 is still held" in found
    with transaction(engine) as connection:
        connection.execute(metadata.tables["share_server_refs"].delete())
        connection.execute(update(pools).values(allocated_gib=0))
        connection.execute(update(addresses).values(share_server_id=None))
    assert list(leftovers.of_tables(engine)) == []
    engine.dispose()
