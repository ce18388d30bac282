"""Each service beneath goes away and comes back while producers send: nothing is lost or left.

``SHAREWRIGHT_OUTAGE_SECONDS`` says how long an outage is, and ``SHAREWRIGHT_STALLED`` how many
operations wait in a stalled queue; ``make crash`` asks for 60 and 5,000.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.crash.outages.site import Site
from tests.crash.outages.traffic import ended, judged
from tests.support.pace import TEST_SECONDS, slowed
from tests.support.services import (
    PostgresServer,
    Process,
    RedisServer,
    missing,
    python,
    require_root,
    wait_until,
)

SECONDS: Final = float(os.environ.get("SHAREWRIGHT_OUTAGE_SECONDS", "6"))
STALLED: Final = int(os.environ.get("SHAREWRIGHT_STALLED", "200"))
pytestmark = pytest.mark.timeout(slowed(TEST_SECONDS + 2 * SECONDS + STALLED / 2))


@pytest.fixture
def made(tmp_path: Path) -> Iterator[ExitStack]:
    """What a test made ends with it, the newest first."""
    with ExitStack() as stack:
        yield stack


def make_redis(made: ExitStack, *, appendonly: bool = False) -> RedisServer:
    server = RedisServer(appendonly=appendonly)
    made.callback(server.close)
    return server.start()


def make_site(
    made: ExitStack, directory: Path, url: str, redis: RedisServer, **options: Any
) -> Site:
    site = Site(directory, url, redis, **options)
    made.callback(site.close)
    return site.start()


@pytest.mark.parametrize(
    "appendonly",
    [pytest.param(False, id="forgetful"), pytest.param(True, id="aof", marks=pytest.mark.whole)],
)
def test_redis_is_killed(
    made: ExitStack, tmp_path: Path, postgres_url: str, *, appendonly: bool
) -> None:
    redis = make_redis(made, appendonly=appendonly)
    site = make_site(made, tmp_path, postgres_url, redis)
    with judged(site) as traffic:
        for _ in range(3):
            ended(traffic, 10)
            redis.restart(kill=True)
        site.calm()
        ended(traffic, 10)


@pytest.mark.whole
def test_redis_is_gone(made: ExitStack, tmp_path: Path, postgres_url: str) -> None:
    redis = make_redis(made)
    site = make_site(made, tmp_path, postgres_url, redis)
    with judged(site) as traffic:
        ended(traffic, 10)
        with site.trouble():
            redis.kill()
            time.sleep(SECONDS)
            redis.start()
        ended(traffic, 10)


@pytest.mark.parametrize(
    "gone",
    [
        pytest.param(0.0, id="restarted"),
        pytest.param(SECONDS, id="gone", marks=pytest.mark.whole),
    ],
)
def test_the_database_goes_away(made: ExitStack, tmp_path: Path, gone: float) -> None:
    postgres = PostgresServer()
    made.callback(postgres.close)
    postgres.start()
    url = postgres.url(postgres.create_database())
    site = make_site(made, tmp_path, url, make_redis(made))
    with judged(site) as traffic:
        ended(traffic, 10)
        with site.trouble():
            postgres.stop(immediate=True)
            time.sleep(gone)
            postgres.start()
        ended(traffic, 10)


@contextmanager
def small_disk(directory: Path, mib: int) -> Iterator[Path]:
    directory.mkdir()
    options = ("-o", f"size={mib}m")
    subprocess.run(("mount", "-t", "tmpfs", *options, "sw-small-disk", directory), check=True)
    try:
        yield directory
    finally:
        subprocess.run(("umount", "--lazy", directory), check=True)


def fill(path: Path) -> None:
    """Write until there is no room at all."""
    with path.open("wb", 0) as filler:
        try:
            while True:
                filler.write(bytes(1 << 12))
        except OSError:
            return


def test_the_disk_is_full(made: ExitStack, tmp_path: Path) -> None:
    require_root()
    disk = made.enter_context(small_disk(tmp_path / "disk", 64))
    url = f"sqlite:///{disk / 'sharewright.db'}"
    site = make_site(made, tmp_path / "site", url, make_redis(made))
    with judged(site, producers=6) as traffic:
        ended(traffic, 10)
        with site.trouble():
            fill(disk / "filler")
            wait_until(lambda: "disk is full" in site.logs(), "somebody could not write")
            time.sleep(SECONDS)
            (disk / "filler").unlink()
        ended(traffic, 10)


@pytest.mark.whole
@pytest.mark.parametrize("disturbance", ["twice", "shuffled"])
def test_messages_come_as_they_like(
    made: ExitStack, tmp_path: Path, postgres_url: str, disturbance: str
) -> None:
    redis = make_redis(made)
    site = make_site(made, tmp_path, postgres_url, redis, disturbance=disturbance)
    with judged(site) as traffic:
        ended(traffic, 40)


@pytest.mark.whole
def test_all_workers_are_renewed_under_load(
    made: ExitStack, tmp_path: Path, postgres_url: str
) -> None:
    site = make_site(made, tmp_path, postgres_url, make_redis(made))
    with judged(site) as traffic:
        ended(traffic, 10)
        for role in ("worker", "scheduler", "reconciler"):
            site.renew(role)
        ended(traffic, 10)
    # Producers were refused what cannot be (two want the same thing), but nothing failed.
    assert {code for code in traffic.counts if code.startswith("ended")} <= {"ended: conflict"}


@pytest.mark.whole
@pytest.mark.parametrize("offset", ["+300s", "-300s"])
def test_a_clock_is_wrong(made: ExitStack, tmp_path: Path, postgres_url: str, offset: str) -> None:
    libraries = list(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not libraries:
        missing("libfaketime is not installed.")
    site = make_site(made, tmp_path, postgres_url, make_redis(made), workers=1)
    wrong = Process(
        python("scheduler.cli", "worker", "--name", "wrong", "--concurrency", "2"),
        log=tmp_path / "wrong.log",
        env={
            **site.env,
            "LD_PRELOAD": str(libraries[0]),
            "FAKETIME": offset,
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        },
    )
    made.callback(wrong.close)
    wrong.start("ready")
    with judged(site) as traffic:
        ended(traffic, 40)
    steps = site.external.rows("SELECT worker, outcome FROM operation_steps")
    pids = {str(pid) for pid in wrong.children()}
    assert pids & {step["worker"].rpartition(":")[2] for step in steps}
    # Each step was done at the first attempt: no lease was taken for run out.
    assert {step["outcome"] for step in steps} == {"done"}


@pytest.mark.whole
def test_a_queue_is_stalled(made: ExitStack, tmp_path: Path, postgres_url: str) -> None:
    """Ten minutes are scaled down to ``queued_limit``, and what a deep queue is along with them."""
    times = 1 + STALLED / 500
    queued_limit = 15.0
    scaled = {"queued_limit": queued_limit, "redrive_batch": STALLED // 16}
    site = make_site(made, tmp_path, postgres_url, make_redis(made), **scaled)
    client = site.client()
    with site.stalled():
        for number in range(STALLED):
            payload = {"version": 1, "context": {"project_id": "p"}, "size": 1}
            client.send(
                "create_share",
                {**payload, "share_type": "single"},
                operation_id=f"stalled-{number}",
            )
        accepted = "SELECT id FROM operations WHERE verb = 'create_share'"
        wait_until(
            lambda: len(site.external.rows(accepted)) == STALLED,
            "all are accepted",
            times,
        )
        time.sleep(queued_limit)
    client.close()
    site.settle(times)
    assert list(site.findings(["p"])) == []
    rows = site.external.rows("SELECT state, dispatch FROM operations WHERE verb = 'create_share'")
    assert [row["state"] for row in rows] == ["succeeded"] * STALLED
    assert max(row["dispatch"] for row in rows) <= 2
    attempts = site.external.rows("SELECT sum(attempt) AS n FROM operation_steps")[0]["n"]
    calls = site.external.world_rows("SELECT id FROM calls WHERE name = 'create_share'")
    assert attempts <= STALLED * 1.2
    assert len(calls) <= STALLED * 1.2
