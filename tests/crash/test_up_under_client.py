"""`sharewright up` comes and goes; what it serves stays, and what was asked of it is done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kombu.exceptions import OperationalError

from tests.story import WRITER
from tests.support import leftovers
from tests.support.embedded import EmbeddedService
from tests.support.pace import limit
from tests.support.real import BACKEND, take_away
from tests.support.services import Process, python, require_root_datapath, wait_until
from tests.support.tenants import Tenant


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home with the real backend, and a lease that is short enough to wait for."""
    require_root_datapath()
    home = tmp_path / "home"
    home.mkdir()
    (home / "sharewright.toml").write_text(f"[health]\nport = 0\n[engine]\nlease = 3.0\n{BACKEND}")
    marks = [str(home)]
    try:
        yield home
    finally:
        marks += [path.name for path in home.glob("state/backends/real/servers/*")]
        take_away(home, marks)


@contextmanager
def served(home: Path) -> Iterator[list[EmbeddedService]]:
    """A service that the test may replace; the last one is stopped."""
    services = [EmbeddedService.up(home)]
    try:
        yield services
    except BaseException:
        print((home / "up.log").read_text(errors="replace")[-4000:])
        raise
    finally:
        services[-1].close()


def daemons(home: Path) -> list[str]:
    """The pids of all NFS servers of this home."""
    found = subprocess.run(
        ["pgrep", "-f", f"^ganesha.nfsd -f {home}/"], capture_output=True, text=True, check=False
    )
    return found.stdout.split()


def take_all_away(service: EmbeddedService, home: Path) -> None:
    """Delete by request, stop, decommission: then nothing is left."""
    for share in service.ask("p1", "list_shares")["shares"]:
        service.ask("p1", "delete_share", share_id=share["id"])
    service.settle()
    for network in service.ask("p1", "list_share_networks")["share_networks"]:
        service.ask("p1", "delete_share_network", share_network_id=network["id"])
    assert list(leftovers.of_tables(service.engine)) == []
    marks = leftovers.marks(home, service.engine)
    service.close()
    command = python("scheduler.cli", "decommission", "--home", str(home))
    decommission = Process(command, log=home / "decommission.log")
    assert decommission.start().wait() == 0, decommission.output()
    assert list(leftovers.of_run(marks)) == []


def test_a_client_notices_nothing(home: Path) -> None:
    with served(home) as services:
        service = services[-1]
        share = service.ask("p1", "create_share", size=1, share_network_id=service.network("p1"))
        service.ask("p1", "allow_access", share_id=share["id"], access_to=WRITER)
        bridge = service.bridge("p1", share)
        before = daemons(home)
        assert len(before) == 1
        path = share["export_locations"][0]["path"]
        client = Tenant.make(bridge, f"{WRITER}/24")
        command = client.nfs_command(path, "loop", "file", "150")
        loop = subprocess.Popen(command, stdout=subprocess.PIPE)
        try:
            wait_until(lambda: any(home.glob("**/mounts/*/data/file")), "the client writes")
            assert service.process.terminate() == 0
            service.close()
            services.append(EmbeddedService.up(home))
            services[-1].process.kill()
            services[-1].client.close()
            services.append(EmbeddedService.up(home))
            # It goes on with what was there, and serves more beside it.
            service = services[-1]
            service.ask("p1", "extend_share", share_id=share["id"], new_size=2)
            other = service.ask(
                "p1", "create_share", size=1, share_network_id=share["share_network_id"]
            )
            assert other["share_server_id"] == share["share_server_id"]
            assert loop.poll() is None
            loop.terminate()
            answer = json.loads(loop.communicate(timeout=limit())[0])
        finally:
            loop.kill()
            loop.wait()
            client.close()
        assert answer["failures"] == []
        assert answer["operations"] > 1000
        assert daemons(home) == before
        take_all_away(service, home)


def test_redis_killed_is_back_and_nothing_is_lost(home: Path) -> None:
    with served(home) as services:
        service = services[-1]
        networks = [service.network("p1") for _ in range(2)]

        def asked(network: str) -> str:
            payload = {"version": 1, "context": {"project_id": "p1"}, "size": 1}
            return service.client.submit("create_share", {**payload, "share_network_id": network})

        operations = [asked(networks[0]), asked(networks[1])]
        redis = json.loads((home / "service.json").read_text())["pids"]["redis"]
        os.kill(redis, signal.SIGKILL)
        operations.append(soon(lambda: asked(networks[0])))
        made = [service.client.result(one, timeout=limit()) for one in operations]
        assert [share["status"] for share in made] == ["available"] * 3
        servers = {share["share_server_id"] for share in made}
        assert len(servers) == len(networks) == len(daemons(home))
        take_all_away(service, home)


def soon(ask: Callable[[], str]) -> str:
    """What a producer does while the broker is away: ask again."""
    answers: list[str] = []

    def answered() -> bool:
        try:
            answers.append(ask())
        except (OperationalError, OSError):
            return False
        return True

    wait_until(answered, "the service takes requests again")
    return answers[0]
