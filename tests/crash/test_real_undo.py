"""kill -9 on the real data path in what the creates do not pass: undos, deletions, other verbs.

Four workers, one step each; each kill strikes whichever operation comes by first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.pace import limit
from tests.support.real import RealDeployment
from tests.support.services import RedisServer, require_root_datapath
from worker.db.tables.main import shares, snapshots
from worker.errors import RequestFailed

pytestmark = pytest.mark.whole

STAGES = ("before", "after_effect", "before_commit", "after_commit")
ON_A_SHARE = ("extend_share", "update_access", "create_snapshot", "delete_snapshot")
REMOVING = ("delete_share", "delete_share_server", "deallocate_network")


class Killed:
    """The site and what is armed on it."""

    def __init__(self, site: RealDeployment, tokens: Path) -> None:
        self.site = site
        self.tokens = tokens

    def arm(self, points: Sequence[str], action: str = "kill_main") -> None:
        for number, point in enumerate(points):
            new = self.tokens / f"new-{number}"
            new.write_text(action)
            new.rename(self.tokens / f"{point}@{number}")

    def send(self, verb: str, **fields: Any) -> str:
        return self.site.client.submit(verb, self.site.payload(**fields))

    def ended(self, asked: Sequence[str]) -> list[dict[str, Any]]:
        made = [self.site.client.result(one, timeout=limit()) for one in asked]
        self.site.settle()
        assert list(self.tokens.iterdir()) == [], "some faults never struck"
        return made

    def shares(self, number: int) -> list[str]:
        networks = [self.site.network() for _ in range(number)]
        asked = [self.send("create_share", size=1, share_network_id=one) for one in networks]
        return [share["id"] for share in self.ended(asked)]


@contextmanager
def killed(tmp_path: Path, url: str, redis: RedisServer) -> Iterator[Killed]:
    require_root_datapath()
    site = RealDeployment(tmp_path, url, redis, engine={"lease": 3.0, "failed_undo_pause": 2.0})
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    try:
        site.role("scheduler")
        site.role("reconciler")
        site.forked(4, SHAREWRIGHT_FAILPOINT_TOKENS=str(tokens))
        site.wait_reported()
        yield Killed(site, tokens)
        assert site.left() == []
    except BaseException:
        print(site.logs())
        raise
    finally:
        site.close()


def test_killed_in_every_other_verb(
    tmp_path: Path, postgres_url: str, redis_server: RedisServer
) -> None:
    with killed(tmp_path, postgres_url, redis_server) as killing:
        made = killing.shares(len(STAGES))
        rules: list[str] = []
        for action in ON_A_SHARE:
            killing.arm([f"{action}.{stage}" for stage in STAGES])
            if action == "extend_share":
                asked = [killing.send(action, share_id=one, new_size=2) for one in made]
            elif action == "update_access":
                asked = [
                    killing.send("allow_access", share_id=one, access_to="10.79.0.200")
                    for one in made
                ]
            elif action == "create_snapshot":
                asked = [killing.send(action, share_id=one) for one in made]
            else:
                asked = [
                    killing.send(action, snapshot_id=row.id) for row in killing.site.rows(snapshots)
                ]
            answers = killing.ended(asked)
            if action == "update_access":
                rules = [rule["id"] for rule in answers]
            if action != "create_snapshot":  # a snapshot is a subvolume too
                killing.site.check_external()
        killing.arm([f"update_access.{stage}" for stage in STAGES])
        pairs = zip(made, rules, strict=True)
        killing.ended(
            [killing.send("deny_access", share_id=one, access_id=rule) for one, rule in pairs]
        )
        assert {row.size for row in killing.site.rows(shares)} == {2}
        killing.site.check_external()
        killing.site.servers()
        for action in REMOVING:
            stages = STAGES if action == "delete_share" else ("after_release", *STAGES[1:])
            killing.arm([f"{action}.{stage}" for stage in stages])
        killing.ended([killing.send("delete_share", share_id=one) for one in made])
        killing.site.clear()


def test_killed_in_every_undo(tmp_path: Path, postgres_url: str, redis_server: RedisServer) -> None:
    with killed(tmp_path, postgres_url, redis_server) as killing:
        for action in REMOVING:
            stages = STAGES if action == "delete_share" else ("after_release", *STAGES[1:])
            networks = [killing.site.network() for _ in stages]
            killing.arm(["create_share.after_effect"] * len(stages), "fatal")
            killing.arm([f"{action}.{stage}" for stage in stages])
            asked = [killing.send("create_share", size=1, share_network_id=one) for one in networks]
            for operation_id in asked:
                with pytest.raises(RequestFailed, match="failpoint create_share"):
                    killing.site.client.result(operation_id, timeout=limit())
            killing.ended([])
            assert killing.site.servers() == []
            assert {row.status for row in killing.site.rows(shares)} == {"error"}
            killing.ended(
                [killing.send("delete_share", share_id=row.id) for row in killing.site.rows(shares)]
            )
        killing.site.clear()
