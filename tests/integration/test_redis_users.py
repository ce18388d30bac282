"""The rules for Redis users in docs/how-to/security.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from scheduler.client import Client, NotHeard
from tests.support.deployment import Deployment
from tests.support.producers import celery_producer, produce
from tests.support.services import ROOT, RedisServer

GUIDE: Final = ROOT / "docs" / "how-to" / "security.md"


class Account:
    """A Redis as one of its users reaches it."""

    def __init__(self, redis: RedisServer, user: str) -> None:
        self._redis = redis
        self._user = user

    def url(self, database: int = 0) -> str:
        return self._redis.url(database).replace("redis://", f"redis://{self._user}:secret@")


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A Redis with the guide's users, and none without a password."""
    server = RedisServer()
    try:
        with server.start().client() as client:
            rules = re.findall(r"^ACL SETUSER ((?:.|\n    )+)", GUIDE.read_text(), re.MULTILINE)
            assert len(rules) == 2
            for rule in rules:
                words = rule.replace("<password>", "secret").split()
                client.execute_command("ACL", "SETUSER", *words)
        yield server
    finally:
        server.close()


@pytest.fixture
def deployment(tmp_path: Path, sqlite_url: str, redis: RedisServer) -> Iterator[Deployment]:
    made = Deployment(tmp_path, sqlite_url, redis)
    made.config_path.write_text(
        made.config_path.read_text().replace("redis://", "redis://sharewright:secret@")
    )
    try:
        made.role("scheduler")
        yield made
    finally:
        made.close()


def test_the_guide_s_producer_reads_and_changes_but_does_not_administer(
    deployment: Deployment, redis: RedisServer
) -> None:
    account = Account(redis, "producer")
    payload = deployment.payload()
    asked = [
        ("sharewright.request.list_shares", payload, {"priority": priority})
        for priority in (0, 3, 6, 9)
    ]
    told = produce(celery_producer("installed"), account, asked)
    assert [one["result"]["shares"] for one in told] == [[]] * 4
    client = Client(account.url(), account.url(1))
    try:
        made = client.submit("create_share_network", {**payload, "managed": True}, timeout=20)
        assert client.result(made, timeout=20)["kind"] == "managed"
        assert client.read("list_share_networks", payload, timeout=20)["share_networks"]
        with pytest.raises(NotHeard, match=r"may not publish on requests\.admin"):
            client.submit("list_backends", payload, admin=True, timeout=2)
    finally:
        client.close()
    with redis.client() as administrator:
        assert administrator.llen("requests.admin") == 0
