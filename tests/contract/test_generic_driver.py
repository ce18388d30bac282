"""The contract on real storage and a real nfs-ganesha: btrfs and images, single_svm and servers."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from tests.contract.share_driver_suite import ShareDriverContract, context, rule
from tests.services import require_root_datapath
from tests.tenants import Machine, run
from worker.drivers.generic import GenericOptions, GenericShareDriver
from worker.errors import ConfigurationError, Fatal
from worker.model import AccessRule, DriverMode, Share, ShareServer
from worker.plugin import Options, Setting
from worker.systems.ganesha import render_export
from worker.systems.local import LocalShell

ADDRESS = "10.72.0.1"


def host(_server: ShareServer | None) -> LocalShell:
    return LocalShell()


class Outside:
    """What lies under the backend's state directory, is mounted there or runs from there."""

    holds_data = True

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir

    def state(self) -> Any:
        parts = [*self.state_dir.glob("storage/pool/*/*"), *self.state_dir.glob("storage/*/*")]
        parts += [*self.state_dir.glob("predefined/exports/*")]
        ids = sorted(one.readlink() for one in self.state_dir.glob("predefined/ids/*"))
        mounts = {
            mount
            for mount in Machine.look([str(self.state_dir)]).mounts
            if not mount.endswith("/pool")
        }
        kept = {"shares", "snapshots"}
        names = sorted(str(part) for part in parts if part.name not in kept)
        return names, ids, mounts

    def rules(self, share: Share) -> set[tuple[str, str]]:
        """As the file says that the daemon reads; tests/integration asks the daemon itself."""
        text = (self.state_dir / f"predefined/exports/{share.id}.conf").read_text()
        found = re.findall(r"Clients = ([^;]+); Access_Type = (R.)", text)
        return {(clients.removesuffix("/32"), level.lower()) for clients, level in found}

    def reboot(self) -> None:
        machine = Machine.look([str(self.state_dir)])
        for process in psutil.process_iter(["cmdline"]):
            if " ".join(process.info["cmdline"] or ()) in machine.processes:
                process.kill()
                process.wait(10)
        for mount in sorted(machine.mounts, reverse=True):
            run("umount", mount)

    def write(self, share: Share, name: str, text: str) -> None:
        (self._data(share) / name).write_text(text)

    def read(self, share: Share, name: str) -> str:
        return (self._data(share) / name).read_text()

    def _data(self, share: Share) -> Path:
        return self.state_dir / "storage/mounts" / share.id / "data"


class _OnThisHost(ShareDriverContract):
    options: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def namespace(self) -> Iterator[str]:
        require_root_datapath()
        name = f"swg-{uuid.uuid4().hex[:8]}"
        run("ip", "netns", "add", name)
        run("ip", "-n", name, "link", "set", "dev", "lo", "up")
        run("ip", "-n", name, "address", "add", f"{ADDRESS}/32", "dev", "lo")
        yield name
        run("ip", "netns", "del", name)

    @pytest.fixture
    def server(self) -> None:
        return None

    @pytest.fixture
    def outside(self, tmp_path: Path) -> Outside:
        return Outside(tmp_path)

    @pytest.fixture
    def options_given(self) -> dict[str, Any]:
        return self.options

    @pytest.fixture
    def driver(
        self, tmp_path: Path, namespace: str, options_given: dict[str, Any]
    ) -> Iterator[GenericShareDriver]:
        setting = Setting("backend", DriverMode.SINGLE_SVM, tmp_path)
        options = GenericOptions.model_validate(
            {"service_address": ADDRESS, "service_namespace": namespace} | options_given
        )
        driver = GenericShareDriver(setting, options, host)
        driver.storage_pools()
        yield driver
        self._clear(driver, tmp_path)
        driver.decommission(context())
        machine = Machine.look([str(tmp_path)])
        assert not machine.mounts
        assert not machine.loops
        assert not machine.processes
        assert list(tmp_path.iterdir()) == []

    @staticmethod
    def _clear(driver: GenericShareDriver, state_dir: Path) -> None:
        """What a failed test has left is no reason for the next to fail."""
        if (state_dir / "storage.kind").exists():
            for left in driver._storage(context()).contents():
                share = Share(left, "project", 1, "NFS", "backend", "pool")
                driver.delete_share(context(), share, None)
                driver._storage(context()).delete_snapshot(left)

    def test_a_killed_daemon_comes_back_with_the_rules(
        self, driver: GenericShareDriver, outside: Outside
    ) -> None:
        first, second = (
            Share(str(uuid.uuid4()), "project", 1, "NFS", "backend", "pool") for _ in range(2)
        )
        driver.create_share(context(), first, None)
        driver.update_access(context(), first, None, [rule("10.1.0.9")], 1)
        ganesha = driver._ganesha(context(), None)
        ganesha.stop()
        assert not ganesha.running()
        driver.create_share(context(), second, None)
        assert ganesha.running()
        assert outside.rules(first) == {("10.1.0.9", "rw")}

    def test_export_ids_are_unique_and_stay(self, driver: GenericShareDriver) -> None:
        shares = [
            Share(str(uuid.uuid4()), "project", 1, "NFS", "backend", "pool") for _ in range(3)
        ]
        directory = Path(driver._ganesha(context(), None).directory)

        def number(share: Share) -> int:
            text = (directory / f"exports/{share.id}.conf").read_text()
            found = re.search(r"Export_Id = (\d+);", text)
            assert found
            return int(found.group(1))

        for share in shares:
            driver.create_share(context(), share, None)
        assert [number(share) for share in shares] == [1, 2, 3]
        driver.delete_share(context(), shares[1], None)
        driver.update_access(context(), shares[2], None, [rule("10.1.0.9")], 1)
        assert number(shares[2]) == 3
        driver.create_share(context(), shares[1], None)
        assert number(shares[1]) == 2

    def test_an_export_that_the_daemon_refuses_is_an_error_and_the_old_rules_stay(
        self,
        driver: GenericShareDriver,
        outside: Outside,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        share = Share(str(uuid.uuid4()), "project", 1, "NFS", "backend", "pool")
        driver.create_share(context(), share, None)
        driver.update_access(context(), share, None, [rule("10.1.0.9")], 1)
        monkeypatch.setattr("worker.systems.ganesha._written", lambda network: f'"{network}"')
        with pytest.raises(Fatal, match="refused the export"):
            driver.update_access(context(), share, None, [rule("10.1.0.8")], 2)
        monkeypatch.undo()
        assert outside.rules(share) == {("10.1.0.9", "rw")}
        driver.update_access(context(), share, None, [rule("10.1.0.8")], 2)
        assert outside.rules(share) == {("10.1.0.8", "rw")}


class TestGenericOnBtrfs(_OnThisHost):
    options: ClassVar[dict[str, Any]] = {"storage": "btrfs", "pool_size": 5}


class TestGenericOnImages(_OnThisHost):
    options: ClassVar[dict[str, Any]] = {"storage": "images"}


class TestGenericOnOperatorsMount(_OnThisHost):
    @pytest.fixture
    def options_given(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
        require_root_datapath()
        place = tmp_path_factory.mktemp("operator")
        run("truncate", "-s", "3G", str(place / "disk"))
        run("mkfs.btrfs", "-q", str(place / "disk"))
        (place / "mount").mkdir()
        run("mount", "-o", "loop", str(place / "disk"), str(place / "mount"))
        yield {"mount": str(place / "mount")}
        assert list((place / "mount").iterdir()) == []
        run("umount", str(place / "mount"))


def test_narrow_rules_come_first_and_everybody_is_two_halves() -> None:
    rules = [
        AccessRule("1", "ip", "0.0.0.0/0", "rw"),
        AccessRule("2", "ip", "10.0.0.0/8", "rw"),
        AccessRule("3", "ip", "10.0.0.7", "ro"),
        AccessRule("4", "ip", "10.0.0.7", "rw"),
        AccessRule("5", "ip", "::/0", "ro"),
    ]
    text = render_export("share", "/data", 1, rules, 7)
    assert text.startswith("# generation 7\n")
    assert re.findall(r"Clients = ([^;]+); Access_Type = (R.)", text) == [
        ("10.0.0.7/32", "RO"),
        ("10.0.0.7/32", "RW"),
        ("10.0.0.0/8", "RW"),
        ("0.0.0.0/1, 128.0.0.0/1", "RW"),
        (f"{'0000:' * 7}0000/1, 8000:{'0000:' * 6}0000/1", "RO"),
    ]


@pytest.mark.parametrize(
    "bad",
    [
        AccessRule("1", "user", "alice", "rw"),
        AccessRule("1", "ip", "10.0.0.0/33", "rw"),
        AccessRule("1", "ip", "*; Access_Type = RW", "rw"),
        AccessRule("1", "ip", "10.0.0.1", "rwx"),
    ],
)
def test_a_rule_that_nfs_cannot_express_is_refused(bad: AccessRule) -> None:
    with pytest.raises(Fatal, match="Access rule 1"):
        render_export("share", "/data", 1, [bad], 1)


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        (DriverMode.SINGLE_SVM, GenericOptions()),
        (DriverMode.FLAT_MULTI_SVM, GenericOptions.model_validate({"service_address": ADDRESS})),
    ],
)
def test_options_that_do_not_fit_the_mode_stop_the_worker(
    tmp_path: Path, mode: DriverMode, options: Options
) -> None:
    with pytest.raises(ConfigurationError, match="service_address"):
        GenericShareDriver(Setting("backend", mode, tmp_path), options, host)
