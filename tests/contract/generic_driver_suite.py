"""What the generic driver must do wherever its storage and NFS server are.

Beside the fixtures of :class:`ShareDriverContract`: ``outside`` is an :class:`Outside` here.
"""

from __future__ import annotations

import re
import uuid
from pathlib import Path
from typing import Any

import psutil
import pytest
from netaddr import IPNetwork

from tests.support.pace import limit
from tests.support.tenants import Machine, run
from worker.addressing import client_network
from worker.drivers.generic import GenericShareDriver
from worker.errors import Fatal
from worker.model import Share, ShareServer
from worker.testing.calls import context, rule
from worker.testing.share_driver import ShareDriverContract


class ExternalSystem:
    """What lies under a directory, is mounted there or runs from there; ``daemon`` is a part."""

    holds_data = True

    def __init__(self, base: Path, daemon: str) -> None:
        self.base = base
        self.daemon = base / daemon

    def state(self) -> Any:
        parts = [*self.base.glob("storage/pool/*/*"), *self.base.glob("storage/*/*")]
        parts += [*self.daemon.glob("exports/*")]
        ids = sorted(one.readlink() for one in self.daemon.glob("ids/*"))
        mounts = {
            mount for mount in Machine.look([str(self.base)]).mounts if not mount.endswith("/pool")
        }
        kept = {"shares", "snapshots"}
        names = sorted(str(part) for part in parts if part.name not in kept)
        return names, ids, mounts

    def rules(self, share: Share) -> set[tuple[str, str]]:
        """As the file says that the daemon reads; tests/integration asks the daemon itself."""
        text = (self.daemon / f"exports/{share.id}.conf").read_text()
        found = re.findall(r"Clients = ([^;]+); Access_Type = (R.)", text)
        return {(clients.removesuffix("/32"), level.lower()) for clients, level in found}

    def reboot(self) -> None:
        machine = Machine.look([str(self.base)])
        for process in psutil.process_iter(["cmdline"]):
            if " ".join(process.info["cmdline"] or ()) in machine.processes:
                process.kill()
                process.wait(limit())
        for mount in sorted(machine.mounts, reverse=True):
            run("umount", mount)

    def write(self, share: Share, name: str, text: str) -> None:
        (self.data(share) / name).write_text(text)

    def read(self, share: Share, name: str) -> str:
        return (self.data(share) / name).read_text()

    def data(self, share: Share) -> Path:
        return self.base / "storage/mounts" / share.id / "data"


def _accepted(text: str) -> IPNetwork | None:
    try:
        return client_network(text)
    except ValueError:
        return None


class GenericDriverContract(ShareDriverContract):
    """The contract, on real storage and a real nfs-ganesha."""

    def test_a_killed_daemon_comes_back_with_the_rules(
        self, driver: GenericShareDriver, server: ShareServer | None, external: ExternalSystem
    ) -> None:
        first, second = (
            Share(str(uuid.uuid4()), "project", 1, "NFS", "backend", "pool") for _ in range(2)
        )
        driver.create_share(context(), first, server)
        driver.update_access(context(), first, server, [rule("10.1.0.9")], 1)
        ganesha = driver._ganesha(context(), server)
        ganesha.stop()
        assert not ganesha.running()
        driver.create_share(context(), second, server)
        assert ganesha.running()
        assert external.rules(first) == {("10.1.0.9", "rw")}

    def test_what_a_reboot_takes_comes_back_with_the_next_call(
        self, driver: GenericShareDriver, server: ShareServer | None, external: ExternalSystem
    ) -> None:
        share = Share(str(uuid.uuid4()), "project", 1, "NFS", "backend", "pool")
        locations = driver.create_share(context(), share, server)
        driver.update_access(context(), share, server, [rule("10.1.0.9")], 4)
        external.write(share, "file", "kept")
        driver._ganesha(context(), server).stop()
        for mount in sorted(Machine.look([str(external.base)]).mounts, reverse=True):
            run("umount", mount)
        with pytest.raises(FileNotFoundError):
            external.read(share, "file")
        assert driver.create_share(context(), share, server) == locations
        assert external.read(share, "file") == "kept"
        assert external.rules(share) == {("10.1.0.9", "rw")}

    def test_export_ids_are_unique_and_stay(
        self, driver: GenericShareDriver, server: ShareServer | None
    ) -> None:
        shares = [
            Share(str(uuid.uuid4()), "project", 1, "NFS", "backend", "pool") for _ in range(3)
        ]
        directory = Path(driver._ganesha(context(), server).directory)

        def number(share: Share) -> int:
            text = (directory / f"exports/{share.id}.conf").read_text()
            found = re.search(r"Export_Id = (\d+);", text)
            assert found
            return int(found.group(1))

        for share in shares:
            driver.create_share(context(), share, server)
        assert [number(share) for share in shares] == [1, 2, 3]
        driver.delete_share(context(), shares[1], server)
        driver.update_access(context(), shares[2], server, [rule("10.1.0.9")], 1)
        assert number(shares[2]) == 3
        driver.create_share(context(), shares[1], server)
        assert number(shares[1]) == 2

    def test_the_daemon_reads_every_rule_that_intake_accepts(
        self, driver: GenericShareDriver, server: ShareServer | None
    ) -> None:
        accepted = [
            str(network)
            for texts in (
                [f"{IPNetwork(f'10.1.2.3/{length}').cidr}" for length in range(33)],
                [f"{IPNetwork(f'fd00:20::abcd/{length}').cidr}" for length in range(129)],
                ["::ffff:10.9.0.0/112", "2001:db8::/32", "fe80::/10", "fd00:20::77"],
            )
            for text in texts
            if (network := _accepted(text)) is not None
        ]
        assert len(accepted) == 33 + 129 - 20 + 4
        share = Share(str(uuid.uuid4()), "project", 1, "NFS", "backend", "pool")
        driver.create_share(context(), share, server)
        driver.update_access(context(), share, server, [rule(one) for one in accepted], 1)
        driver.delete_share(context(), share, server)

    def test_an_export_that_the_daemon_refuses_is_an_error_and_the_old_rules_stay(
        self,
        driver: GenericShareDriver,
        server: ShareServer | None,
        external: ExternalSystem,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        share = Share(str(uuid.uuid4()), "project", 1, "NFS", "backend", "pool")
        driver.create_share(context(), share, server)
        driver.update_access(context(), share, server, [rule("10.1.0.9")], 1)
        monkeypatch.setattr(
            "worker.systems.exports.ganesha._written", lambda network: f'"{network}"'
        )
        with pytest.raises(Fatal, match="refused the export"):
            driver.update_access(context(), share, server, [rule("10.1.0.8")], 2)
        monkeypatch.undo()
        assert external.rules(share) == {("10.1.0.9", "rw")}
        driver.update_access(context(), share, server, [rule("10.1.0.8")], 2)
        assert external.rules(share) == {("10.1.0.8", "rw")}
