"""kill -9 of workers in the middle of every step, on the real data path.

The outside is looked at by itself (:meth:`RealDeployment.check_outside`), not through our code.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.pace import limit
from tests.support.real import TENANT, RealDeployment
from tests.support.services import RedisServer, require_root_datapath
from worker.db.tables.main import shares

AFTER = ("after_effect",) * 3 + ("before_commit",) * 2 + ("after_commit",) * 2
STAGES = {
    "allocate_network": ("after_join",) * 3 + AFTER,
    "get_share_server": ("after_plug", "after_plug", "after_address", *AFTER),
    "create_share": ("after_storage",) * 3 + AFTER,
}
"""Where the ten kills of a step strike: half of the effect is there; all of it, and not written;
or it is written, and the next message not sent."""


def arm(tokens: Path, failpoints: Sequence[str]) -> None:
    """One kill at each of these, of whichever worker comes by first."""
    for number, failpoint in enumerate(failpoints):
        (tokens / f"{failpoint}@{number}").touch()


def killed_creates(
    tmp_path: Path,
    database_url: str,
    redis: RedisServer,
    rounds: Sequence[Sequence[str]],
    *,
    lease: float,
    workers: int,
) -> None:
    """One create a kill, each on a share network of its own, those of a round at once."""
    require_root_datapath()
    site = RealDeployment(tmp_path, database_url, redis, engine={"lease": lease})
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    points = {f"{step}.{stage}" for step, stages in STAGES.items() for stage in stages}
    try:
        site.role("scheduler")
        site.role("reconciler")
        forked = site.forked(
            workers,
            SHAREWRIGHT_FAILPOINTS=";".join(f"{point}=kill_main" for point in sorted(points)),
            SHAREWRIGHT_FAILPOINT_TOKENS=str(tokens),
        )
        site.wait_reported()
        networks = []
        for failpoints in rounds:
            made = [site.network() for _ in failpoints]
            networks += made
            arm(tokens, failpoints)
            create_all(site, made)
            assert list(tokens.iterdir()) == [], "some kills never happened"
        assert forked.output().split("ended: ")[1:] == ["-9\n"] * len(networks)
        site.settle()
        site.check_external()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(functools.partial(use, site), networks))
        site.clear()
        assert site.left() == []
    except BaseException:
        print(site.logs())
        raise
    finally:
        site.close()


def create_all(site: RealDeployment, networks: list[str]) -> None:
    asked = [
        site.client.submit("create_share", site.payload(size=1, share_network_id=network))
        for network in networks
    ]
    for operation_id in asked:
        share = site.client.result(operation_id, timeout=limit())
        assert share["status"] == "available"


def use(site: RealDeployment, network_id: str) -> None:
    """The one share of a network, as its tenant sees it."""
    (share,) = (row for row in site.rows(shares) if row.share_network_id == network_id)
    site.ask("allow_access", share_id=share.id, access_to=TENANT)
    (location,) = share.export_locations
    with site.tenant(network_id) as client:
        assert client.nfs(location["path"], "write", "file", data=b"mine")["ok"]
        assert client.nfs(location["path"], "read", "file")["text"] == "mine"


def test_thirty_kills_in_the_middle_of_steps(
    tmp_path: Path, postgres_url: str, redis_server: RedisServer
) -> None:
    """Ten a step. With a lease of 3 s, so that the thirty do not take minutes: what is waited for
    is the lease, and the next test waits for it at its default."""
    rounds = [[f"{step}.{stage}" for stage in stages] for step, stages in STAGES.items()]
    killed_creates(tmp_path, postgres_url, redis_server, rounds, lease=3.0, workers=3)


def test_a_kill_in_each_step_at_the_default_lease(
    tmp_path: Path, sqlite_url: str, redis_server: RedisServer
) -> None:
    rounds = [[f"{step}.after_effect" for step in STAGES]]
    killed_creates(tmp_path, sqlite_url, redis_server, rounds, lease=20.0, workers=1)
