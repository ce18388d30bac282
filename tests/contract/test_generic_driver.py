"""The contract on real storage and a real nfs-ganesha: btrfs and images, single_svm and servers."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.contract.generic_driver_suite import ExternalSystem, GenericDriverContract
from tests.support.services import alive, require_root_datapath, wait_until
from tests.support.tenants import Machine, run
from worker.drivers.generic import GenericOptions, GenericShareDriver
from worker.errors import ConfigurationError, Fatal, NotReady
from worker.helpers.compute.namespace import NamespaceComputeHelper, NamespaceOptions
from worker.model import AccessRule, DriverMode, Share, ShareServer, Snapshot
from worker.plugin import BackendContext, Options
from worker.systems.exports.ganesha import render_export
from worker.systems.shell.local import LocalShell
from worker.testing.calls import context, patiently

ADDRESS = "10.72.0.1"


def host(_server: ShareServer | None) -> LocalShell:
    return LocalShell()


class _OnThisHost(GenericDriverContract):
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
    def external(self, tmp_path: Path) -> ExternalSystem:
        return ExternalSystem(tmp_path, "predefined")

    @pytest.fixture
    def options_given(self) -> dict[str, Any]:
        return self.options

    @pytest.fixture
    def driver(
        self, tmp_path: Path, namespace: str, options_given: dict[str, Any]
    ) -> Iterator[GenericShareDriver]:
        backend = BackendContext("backend", DriverMode.SINGLE_SVM, tmp_path)
        options = GenericOptions.model_validate(
            {"service_address": ADDRESS, "service_namespace": namespace} | options_given
        )
        driver = GenericShareDriver(backend, options, host)
        driver.storage_pools(context())
        yield driver
        self._clear(driver, tmp_path)
        driver.decommission(context())
        machine = Machine.look([str(tmp_path)])
        assert not machine.mounts
        assert not machine.loops
        assert not machine.processes
        assert list(tmp_path.iterdir()) == []

    def test_a_hanging_file_server_is_missed_and_is_replaced(
        self,
        driver: GenericShareDriver,
        share: Share,
        namespace: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("worker.systems.exports.probe.PROBE_SECONDS", (1.0, 1.0))
        driver.create_share(context(), share, None)
        assert driver.serves(context())
        (pid,) = run("ip", "netns", "pids", namespace).split()
        os.kill(int(pid), signal.SIGSTOP)
        assert not driver.serves(context())
        driver.ensure_share(context(), share, None)
        assert driver.serves(context())
        assert run("ip", "netns", "pids", namespace).split() != [pid]

    @staticmethod
    def _clear(driver: GenericShareDriver, state_dir: Path) -> None:
        """What a failed test has left is no reason for the next to fail."""
        if (state_dir / "storage.kind").exists():
            storage = driver._storage(context(), None)
            for left in storage.contents():
                share = Share(left, "project", 1, "NFS", "backend", "pool")
                driver.delete_share(context(), share, None)
                storage.delete_snapshot(left)


class TestGenericOnBtrfs(_OnThisHost):
    options: ClassVar[dict[str, Any]] = {"storage": "btrfs", "pool_size": 5}


class TestGenericOnImages(_OnThisHost):
    options: ClassVar[dict[str, Any]] = {"storage": "images"}

    @pytest.fixture
    def slow_copies(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
        """Copies take until the file ``go`` is there."""
        place = tmp_path_factory.mktemp("slow")
        (place / "cp").write_text(
            f"#!/bin/sh\ntouch {place}/begun\n"
            f'while [ ! -e {place}/go ]; do sleep 0.05; done\nexec {shutil.which("cp")} "$@"\n'
        )
        (place / "cp").chmod(0o755)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", f"{place}:{os.environ['PATH']}")
            yield place

    def test_a_long_copy_goes_on_outside_of_the_step(
        self,
        driver: GenericShareDriver,
        external: ExternalSystem,
        share: Share,
        snapshot: Snapshot,
        slow_copies: Path,
    ) -> None:
        driver.create_share(context(), share, None)
        external.write(share, "file", "old")
        for _ in range(2):
            with pytest.raises(NotReady, match="is still being copied"):
                driver.create_snapshot(context(), snapshot, share, None)
        (slow_copies / "go").touch()
        patiently(lambda: driver.create_snapshot(context(), snapshot, share, None))
        external.write(share, "file", "new")

        (slow_copies / "go").unlink()
        clone = dataclasses.replace(share, id=str(uuid.uuid4()))
        with pytest.raises(NotReady):
            driver.create_share_from_snapshot(context(), clone, snapshot, None)
        (slow_copies / "go").touch()
        patiently(lambda: driver.create_share_from_snapshot(context(), clone, snapshot, None))
        assert external.read(clone, "file") == "old"

    def test_a_copy_that_was_killed_is_begun_again(
        self,
        driver: GenericShareDriver,
        external: ExternalSystem,
        share: Share,
        snapshot: Snapshot,
        slow_copies: Path,
    ) -> None:
        driver.create_share(context(), share, None)
        with pytest.raises(NotReady):
            driver.create_snapshot(context(), snapshot, share, None)
        first = _copying(external.base, snapshot)
        assert first is not None
        os.killpg(first, signal.SIGKILL)
        (slow_copies / "go").touch()
        patiently(lambda: driver.create_snapshot(context(), snapshot, share, None))
        wait_until(lambda: _copying(external.base, snapshot) is None, "the copy has ended")
        external.write(share, "file", "the share is not frozen")

    @pytest.mark.usefixtures("slow_copies")
    @pytest.mark.parametrize("killed", [False, True])
    def test_a_delete_ends_the_copy(
        self,
        driver: GenericShareDriver,
        external: ExternalSystem,
        share: Share,
        snapshot: Snapshot,
        killed: bool,
    ) -> None:
        driver.create_share(context(), share, None)
        without = external.state()
        with pytest.raises(NotReady):
            driver.create_snapshot(context(), snapshot, share, None)
        copying = _copying(external.base, snapshot)
        assert copying is not None
        if killed:
            os.killpg(copying, signal.SIGKILL)
        driver.delete_snapshot(context(), snapshot, share, None)
        assert external.state() == without
        assert not alive(copying)
        external.write(share, "file", "the share is not frozen")

    def test_a_copy_that_fails_says_why_and_may_be_tried_again(
        self,
        driver: GenericShareDriver,
        share: Share,
        snapshot: Snapshot,
        slow_copies: Path,
    ) -> None:
        driver.create_share(context(), share, None)
        whole = (slow_copies / "cp").read_text()
        (slow_copies / "cp").write_text("#!/bin/sh\necho No space left on device >&2\nexit 1\n")
        with pytest.raises(Fatal, match=f"take snapshot {snapshot.id}.*the storage is full"):
            patiently(lambda: driver.create_snapshot(context(), snapshot, share, None))
        (slow_copies / "cp").write_text(whole)
        (slow_copies / "go").touch()
        patiently(lambda: driver.create_snapshot(context(), snapshot, share, None))


def _copying(state_dir: Path, snapshot: Snapshot) -> int | None:
    """The process group that copies a snapshot."""
    pid = state_dir / "storage/snapshots" / snapshot.id / "pid"
    return int(pid.read_text()) if pid.exists() else None


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
        GenericShareDriver(BackendContext("backend", mode, tmp_path), options, host)


@pytest.mark.parametrize("directory", ["/srv/a b", "/srv/ü", "/srv/backends/..", "srv"])
def test_a_state_directory_that_no_file_server_can_use_is_refused_at_the_start(
    directory: str,
) -> None:
    """By driver and helper themselves, whoever made the directory's name."""
    single = BackendContext("backend", DriverMode.SINGLE_SVM, Path(directory))
    with pytest.raises(ConfigurationError, match="cannot hold a file server: use letters"):
        GenericShareDriver(
            single, GenericOptions.model_validate({"service_address": ADDRESS}), host
        )
    flat = BackendContext("backend", DriverMode.FLAT_MULTI_SVM, Path(directory))
    with pytest.raises(ConfigurationError, match="cannot hold a file server: use letters"):
        NamespaceComputeHelper(flat, NamespaceOptions())
