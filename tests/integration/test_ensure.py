"""What a reboot takes comes back: servers, mounts, exports; and a dead file server by itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.pace import limit
from tests.support.real import TENANT, RealDeployment, take_away
from tests.support.services import ROOT, RedisServer, python, require_root_datapath, wait_until
from tests.support.tenants import Tenant, run
from worker.db.tables.main import counters, operations, shares

SUCCEEDED, FAILED = 0, 4


@pytest.fixture
def site(tmp_path: Path, sqlite_url: str, redis_server: RedisServer) -> Iterator[RealDeployment]:
    require_root_datapath()
    site = RealDeployment(tmp_path, sqlite_url, redis_server)
    try:
        yield site.start()
    finally:
        print(site.logs())
        site.close()


def make(
    site: RealDeployment, network: str, *, project: str = "p1", level: str = "rw"
) -> dict[str, Any]:
    """A share that the tenant's client may mount."""
    share = site.ask("create_share", project=project, size=1, share_network_id=network)
    rule = {"share_id": share["id"], "access_to": TENANT, "access_level": level}
    site.ask("allow_access", project=project, **rule)
    return share


def path(share: dict[str, Any]) -> str:
    return str(share["export_locations"][0]["path"])


def ensure(site: RealDeployment, *arguments: str) -> tuple[int, str]:
    """Run the command; what it ended with and said."""
    done = subprocess.run(
        python("scheduler.cli", "share-server", "ensure", "--json", *arguments),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **site.env},
        timeout=limit(),
        check=False,
    )
    return done.returncode, done.stdout or done.stderr


def daemons(site: RealDeployment) -> set[int]:
    return {pid for row in site.servers() for pid in site.daemons(row.id)}


def reboot(site: RealDeployment) -> None:
    """Take away all that a reboot does: processes, namespaces, links, mounts, loop devices."""
    site.servers()
    take_away(site.state, site.marks)
    wait_until(lambda: site.look().loops == frozenset(), "the pool is let go of")


def operations_of(site: RealDeployment, verb: str) -> list[str]:
    return [row.state for row in site.rows(operations) if row.verb == verb]


def status(site: RealDeployment, share: dict[str, Any]) -> tuple[str, str]:
    (row,) = [row for row in site.rows(shares) if row.id == share["id"]]
    return row.status, (row.error or {}).get("message", "")


def test_everything_destroyed_comes_back_with_the_command(site: RealDeployment) -> None:
    networks = [site.network(), site.network("p2")]
    served = [make(site, networks[0]) for _ in range(3)]
    read_only = make(site, networks[1], project="p2", level="ro")
    with site.tenant(networks[0]) as client:
        for share in served:
            assert client.nfs(path(share), "write", "file", data=share["id"].encode())["ok"]
    site.processes["reconciler"].close()  # nobody looks of his own accord any more
    reboot(site)
    assert daemons(site) == set()

    code, said = ensure(site)
    assert (code, json.loads(said)) == (SUCCEEDED, {"share_servers": 2, "shares": 4})
    site.check_external()
    with site.tenant(networks[0]) as client, site.tenant(networks[1]) as other:
        for share in served:
            assert client.nfs(path(share), "read", "file")["text"] == share["id"]
        assert client.nfs(path(served[0]), "write", "more", data=b"x")["ok"]
        assert other.nfs(path(read_only), "write", "file", data=b"x")["error"] == "ROFS"
        changes_nothing(site, client, served[1])
    lost_and_found(site, networks[0], served[0], served[1])
    site.clear()
    assert site.left() == []


def changes_nothing(site: RealDeployment, client: Tenant, share: dict[str, Any]) -> None:
    """Once more, it changes nothing, and a client notices nothing."""
    before, exports = daemons(site), [site.exports(row.id) for row in site.servers()]
    command = client.nfs_command(path(share), "loop", "loop", "60")
    with subprocess.Popen(command, stdout=subprocess.PIPE) as loop:
        written = site.state / "storage/mounts" / share["id"] / "data/loop"
        wait_until(written.exists, "the client writes")
        assert ensure(site, "--backend", "real")[0] == SUCCEEDED
        loop.terminate()
        answer = json.loads(loop.communicate(timeout=limit())[0])
    assert answer["failures"] == []
    assert answer["operations"] > 10
    assert daemons(site) == before
    assert [site.exports(row.id) for row in site.servers()] == exports


def lost_and_found(
    site: RealDeployment, network: str, lost: dict[str, Any], kept: dict[str, Any]
) -> None:
    """Lost data is an error, never made anew, and served again once it is back."""
    reboot(site)
    pool = site.state / "storage/pool"
    run("mount", "-o", "loop", str(site.state / "storage/pool.img"), str(pool))
    away, place = pool / "away", pool / "shares" / lost["id"]
    place.rename(away)
    run("umount", str(pool))

    code, said = ensure(site)
    assert (code, lost["id"] in said) == (FAILED, True)
    assert not place.exists()
    assert status(site, kept) == ("available", "")
    assert status(site, lost)[0] == "error"
    assert "is not at" in status(site, lost)[1]

    away.rename(place)
    assert ensure(site, lost["share_server_id"])[0] == SUCCEEDED
    assert status(site, lost) == ("available", "")
    with site.tenant(network) as client:
        assert client.nfs(path(lost), "read", "file")["text"] == lost["id"]
        assert client.nfs(path(kept), "read", "file")["text"] == kept["id"]


def test_what_is_started_again_without_its_mounts_gets_them_back(site: RealDeployment) -> None:
    network = site.network()
    share = make(site, network)
    with site.tenant(network) as client:
        assert client.nfs(path(share), "write", "file", data=b"kept")["ok"]
        (pid,) = daemons(site)
        os.kill(pid, signal.SIGKILL)
        run("umount", str(site.state / "storage/mounts" / share["id"]))
        wait_until(
            lambda: client.nfs(path(share), "read", "file").get("text") == "kept",
            "it is mounted and served again",
            60,
        )
    site.settle()
    assert set(operations_of(site, "ensure_share")) == {"succeeded"}


def test_what_died_serves_again_by_itself(site: RealDeployment) -> None:
    network = site.network()
    share = make(site, network)
    with site.tenant(network) as client:
        assert client.nfs(path(share), "write", "file", data=b"kept")["ok"]
        for _ in range(3):
            (pid,) = daemons(site)
            os.kill(pid, signal.SIGKILL)
            # As any client would: it asks again until it is answered.
            wait_until(
                lambda: client.nfs(path(share), "read", "file").get("text") == "kept",
                "it is served again",
            )
            site.settle()

    reboot(site)
    wait_until(lambda: len(daemons(site)) == 1, "the server is back")
    wait_until(lambda: operations_of(site, "ensure_share") != [], "its shares follow")
    site.settle()
    with site.tenant(network) as client:
        assert client.nfs(path(share), "read", "file")["text"] == "kept"
    site.check_external()
    found = {row.name: row.value for row in site.rows(counters)}
    assert found["share_server_outages_total:file_server"] == 3
    assert found["share_server_outages_total:server"] == 1
    assert operations_of(site, "ensure_share_server") == ["succeeded"] * 4
    assert operations_of(site, "ensure_share") == ["succeeded"] * 4
    site.clear()
    assert site.left() == []
