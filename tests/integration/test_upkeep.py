"""Share servers that are deleted, fail, stop and are lost, on the fakes, with the whole engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.deployment import FAKE_BACKEND
from tests.support.fakes import Fakes
from tests.support.pace import limit, slowed
from tests.support.services import Process, RedisServer, wait_until
from worker.config import this_host
from worker.db.core.engine import reading
from worker.db.tables.main import addresses, operations, share_servers, shares
from worker.errors import RequestFailed

CLIENT = "10.9.0.1"
GROUP = f"host.{this_host()}"
HERE = FAKE_BACKEND + f'host = "{this_host()}"\n'
SINGLE = f"""
[backends.fake]
mode = "single_svm"
share_driver = "fake"
host = "{this_host()}"
"""


class Site(Fakes):
    """A backend of this host, whose servers are watched; they outlive their last share."""

    def __init__(self, *given: Any) -> None:
        engine = {
            "unused_share_server_cleanup_interval": 3600.0,
            "undo_retry_time": 0.1,
            "retry_time": 0.0,
        }
        super().__init__(*given, engine)

    def worker(self, name: str, *, group: str = GROUP, concurrency: int = 2, **env: str) -> Process:
        """Start a worker of this host's group."""
        return super().worker(name, group=group, concurrency=concurrency, **env)

    def clear(self) -> None:
        """Leave nothing to the next test."""
        self.world.disarm()
        if not self.processes["reconciler"].running:
            self.role("reconciler")
        self.settle()
        for row in self.rows(shares):
            self.ask("delete_share", share_id=row.id)
        for row in self.rows(share_servers):
            self.admin("delete_share_server", share_server_id=row.id)
        assert self.rows(share_servers) == []
        self.assert_nothing_external()

    def rows(self, table: Any) -> list[Any]:
        with reading(self.engine) as connection:
            return list(connection.execute(table.select()).all())

    def share(self, network: str | None = None) -> dict[str, Any]:
        """A share that a client has written to."""
        named = {} if network is None else {"share_network_id": network}
        share = self.ask("create_share", size=1, **named)
        self.ask("allow_access", share_id=share["id"], access_to=CLIENT)
        self.world.write(share["id"], CLIENT, "kept")
        return share

    def admin(self, verb: str, **fields: Any) -> dict[str, Any]:
        return self.ask(verb, project="admins", admin=True, **fields)

    def refusal(self, verb: str, **fields: Any) -> RequestFailed:
        with pytest.raises(RequestFailed) as caught:
            self.admin(verb, **fields)
        return caught.value

    def ensure(self, **fields: Any) -> list[dict[str, Any]]:
        """Ensure servers and wait for their shares' operations; the answers of the servers'."""
        asked = self.admin("ensure_share_servers", **fields)["operations"]
        answers = [self.client.result(one, timeout=limit()) for one in asked]
        for answer in answers:
            for one in answer["operations"]:
                self.client.result(one, timeout=limit())
        return answers

    def served(self, share: dict[str, Any]) -> bool:
        try:
            return self.world.read(share["id"], CLIENT) == "kept"
        except FileNotFoundError:
            return False

    def under_way(self, verb: str) -> bool:
        """Whether the fakes are in a call of that name that does not end."""
        return any(call.finished is None for call in self.world.calls(verb))


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer
) -> Iterator[Callable[[str], Site]]:
    """One deployment for each kind of backend, for all tests that ask for it."""
    made: dict[str, Site] = {}

    def started(settings: str) -> Site:
        if settings not in made:
            for site in made.values():
                site.close()
            with shared_redis.client() as client:
                client.flushall()
            directory = tmp_path_factory.mktemp("upkeep")
            url = f"sqlite:///{directory / 'sharewright.db'}"
            made[settings] = Site(directory, url, shared_redis, settings)
            made[settings].start()
        return made[settings]

    yield started
    for site in made.values():
        site.close()


@pytest.fixture
def site(shared: Callable[[str], Site], request: pytest.FixtureRequest) -> Iterator[Site]:
    site = shared(getattr(request, "param", HERE))
    try:
        yield site
    finally:
        print(site.logs())
        site.clear()


def test_deleting_a_server(site: Site) -> None:
    network = site.network()
    share = site.share(network)
    (server,) = site.rows(share_servers)
    assert (
        "1 share is on the share server"
        in site.refusal("delete_share_server", share_server_id=server.id).message
    )
    assert site.refusal("delete_share_server", share_server_id="none").code == "not_found"
    with pytest.raises(RequestFailed, match="administrator"):
        site.ask("delete_share_server", share_server_id=server.id)

    # Unused, it is kept for an hour; an administrator need not wait.
    site.ask("delete_share", share_id=share["id"])
    assert [row.status for row in site.rows(share_servers)] == ["active"]
    site.world.arm("delete_share_server", "fatal")
    failed = site.refusal("delete_share_server", share_server_id=server.id)
    assert "was told" in failed.message
    assert [row.status for row in site.rows(share_servers)] == ["error_deleting"]
    done = site.admin("delete_share_server", share_server_id=server.id)
    assert done == {"id": server.id, "status": "deleted"}
    site.assert_nothing_external()
    assert site.rows(share_servers) == []


def test_a_failed_build_is_seen_until_it_is_deleted(site: Site) -> None:
    network, other = site.network(), site.network(cidr="10.5.0.0/24")
    site.world.arm("get_share_server", "fatal_after_effect", match=network)
    site.world.arm("allocate_network", "fatal", match=other)
    for one in (network, other):
        assert "was told" in site.failure(site.create(one)).message
    site.assert_nothing_external()
    listed = site.ask("list_share_servers", status="error")["share_servers"]
    assert [one["share_network_id"] for one in listed] == [network, other]
    assert all("was told" in one["error"]["message"] for one in listed)
    assert all(row.share_server_id is None for row in site.rows(addresses))

    # It is nobody's server any more: the next share gets another, and its network may go.
    share = site.share(network)
    assert share["share_server_id"] not in {one["id"] for one in listed}
    (failed,) = [row for row in site.rows(shares) if row.share_network_id == other]
    site.ask("delete_share", share_id=failed.id)
    site.ask("delete_share_network", share_network_id=other)
    done = site.admin("delete_share_server", share_server_id=listed[0]["id"])
    assert done["status"] == "deleted"
    assert [row.id for row in site.rows(share_servers)] == [share["share_server_id"]]


def test_an_undo_that_failed_is_tried_again_by_deleting_the_server(site: Site) -> None:
    network = site.network()
    site.world.arm("get_share_server", "fatal_after_effect")
    site.world.arm("delete_share_server", "fatal", times=2)
    assert "Undoing it failed" in site.failure(site.create(network)).message
    (server,) = site.rows(share_servers)
    assert (server.status, len(site.world.servers())) == ("error", 1)
    site.admin("delete_share_server", share_server_id=server.id)
    site.assert_nothing_external()
    assert site.rows(share_servers) == []


def test_what_is_lost_comes_back_by_itself(site: Site) -> None:
    networks = [site.network(), site.network(cidr="10.5.0.0/24")]
    made = [site.share(network) for network in networks for _ in range(2)]
    stopped, lost = (share["share_server_id"] for share in (made[0], made[2]))
    site.world.stop_server(stopped)
    site.world.lose_server(lost)
    assert not site.served(made[3])
    wait_until(lambda: all(map(site.served, made)), "all is served again")
    wait_until(
        lambda: all(row["serves_at"] for row in site.world.servers()), "both servers serve", 60
    )
    site.settle()
    repairs = {
        (row.verb, row.resource_id, row.state)
        for row in site.rows(operations)
        if row.resource_id in {stopped, lost}
    }
    assert repairs == {
        ("ensure_share_server", stopped, "succeeded"),
        ("ensure_share_server", lost, "succeeded"),
    }


def test_ensuring_twice_changes_nothing_and_what_is_lost_is_an_error(site: Site) -> None:
    network = site.network()
    made = [site.share(network) for _ in range(3)]
    site.processes["reconciler"].close()
    site.world.lose_server(made[0]["share_server_id"])
    (answer,) = site.ensure()
    assert len(answer["operations"]) == 3
    assert all(map(site.served, made))
    changes = len(site.world.calls(effect=True))
    site.ensure(backend="fake")
    site.ensure(host=this_host())
    site.ensure(share_server_id=made[0]["share_server_id"])
    assert len(site.world.calls(effect=True)) == changes
    assert site.refusal("ensure_share_servers", backend="none").code == "not_found"
    assert site.refusal("ensure_share_servers", host="none").code == "not_found"

    site.world.lose_share(made[1]["id"])
    with pytest.raises(RequestFailed, match="does not exist"):
        site.ensure()
    site.settle()
    seen = {row.id: row.status for row in site.rows(shares)}
    assert [seen[share["id"]] for share in made] == ["available", "error", "available"]
    # What is lost can be deleted.
    site.ask("delete_share", share_id=made[1]["id"])


def test_a_delete_goes_ahead_of_ensuring_the_share(site: Site) -> None:
    network = site.network()
    made = [site.share(network) for _ in range(2)]
    site.processes["reconciler"].close()
    site.world.lose_exports(made[0]["share_server_id"])
    site.world.arm("ensure_share", "hang", match=made[0]["id"], seconds=slowed(3))
    site.world.arm("ensure_share", "retryable", match=made[1]["id"], times=1000)
    asked = site.admin("ensure_share_servers")["operations"]
    (answer,) = [site.client.result(one, timeout=limit()) for one in asked]
    assert len(answer["operations"]) == 2
    wait_until(lambda: site.under_way("ensure_share"), "one is being ensured")
    # Who asks again gets what is under way.
    (again,) = site.admin("ensure_share_servers")["operations"]
    assert site.client.result(again, timeout=limit()) == answer
    site.role("reconciler")
    deleted = [
        site.client.submit("delete_share", site.payload(share_id=share["id"])) for share in made
    ]
    for one in deleted:
        assert site.client.result(one, timeout=limit())["status"] == "deleted"
    site.settle()
    assert site.world.shares() == []


def test_a_server_is_deleted_while_it_is_repaired(site: Site) -> None:
    """What is to be deleted is not made again by a repair that is under way."""
    network = site.network()
    share = site.share(network)
    site.ask("delete_share", share_id=share["id"])
    (server,) = site.rows(share_servers)
    site.world.arm("get_share_server", "hang", seconds=slowed(3))
    site.world.lose_server(server.id)
    wait_until(lambda: site.under_way("get_share_server"), "it is being repaired")
    done = site.admin("delete_share_server", share_server_id=server.id)
    assert done["status"] == "deleted"
    site.settle()
    site.assert_nothing_external()


def test_an_undo_deletes_a_server_while_it_is_repaired(site: Site) -> None:
    network = site.network()
    site.world.arm("create_share", "not_ready", seconds=60.0)
    asked = site.create(network)
    wait_until(lambda: [row.status for row in site.rows(share_servers)] == ["active"], "it serves")
    (server,) = site.rows(share_servers)
    site.world.arm("get_share_server", "hang", seconds=slowed(3))
    site.world.lose_server(server.id)
    wait_until(lambda: site.under_way("get_share_server"), "it is being repaired")
    (share,) = site.rows(shares)
    site.ask("delete_share", share_id=share.id)
    assert site.failure(asked).code == "cancelled"
    site.settle()
    site.assert_nothing_external()


@pytest.mark.parametrize("site", [SINGLE], indirect=True)
def test_the_predefined_server(site: Site) -> None:
    made = [site.share() for _ in range(2)]
    site.world.lose_exports()
    wait_until(lambda: all(map(site.served, made)), "all is served again")
    site.settle()
    changes = len(site.world.calls(effect=True))
    (answer,) = site.ensure(backend="fake")
    assert (answer["backend_id"], len(answer["operations"])) == ("fake", 2)
    assert len(site.world.calls(effect=True)) == changes
