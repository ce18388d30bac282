"""The shell over SSH, on a real sshd: the contract, and what a network and other keys add."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest

from tests.contract.shell_suite import ShellContract, runs
from tests.support.machines import Lan, Machine
from tests.support.pace import limit
from tests.support.services import wait_until
from worker.errors import ErrorCode, Fatal, NotReady, Retryable
from worker.helpers.compute.machines import check_reachable, ssh_attributes, ssh_shell
from worker.systems.openstack.cloud_init import host_key_pair
from worker.systems.shell.base import Shell
from worker.systems.shell.ssh import LoginRefused, SshShell


@pytest.fixture(scope="module")
def lan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lan]:
    with Lan.made(tmp_path_factory.mktemp("lan")) as lan:
        yield lan


@pytest.fixture(scope="module")
def machine(lan: Lan) -> Machine:
    return lan.machine("server-1")


@pytest.fixture
def shell(machine: Machine) -> Iterator[SshShell]:
    yield machine.shell()
    if not machine.sshd.running:
        machine.start()


def connections(machine: Machine) -> int:
    """How many connections it has let in since sshd was last started."""
    return machine.sshd.output().count("Accepted publickey")


class TestSshShell(ShellContract):
    module = "worker.systems.shell.ssh"


def test_one_connection_serves_all_commands(machine: Machine, shell: Shell) -> None:
    machine.drop_connections()
    before = connections(machine)
    for _ in range(5):
        shell.run(["true"])
    threads = [threading.Thread(target=shell.run, args=(["true"],)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert connections(machine) == before + 1


def test_a_fork_has_a_connection_of_its_own(machine: Machine, shell: Shell) -> None:
    shell.run(["true"])
    before = connections(machine)
    if (child := os.fork()) == 0:
        os._exit(shell.run(["sh", "-c", "exit 3"], check=False).exit_code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert connections(machine) == before + 1
    shell.run(["true"])
    assert connections(machine) == before + 1, "the parent's goes on"


def test_an_unused_connection_is_closed(
    machine: Machine, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.systems.shell.ssh._IDLE", 0.1)
    machine.drop_connections()
    shell.run(["true"])
    wait_until(lambda: not machine.connections(), "the connection is closed")
    shell.run(["true"])


def test_a_connection_that_drops_is_retryable_and_the_next_command_has_a_new_one(
    machine: Machine, shell: Shell, tmp_path: Path
) -> None:
    caught: list[Exception] = []

    def command() -> None:
        try:
            shell.run(["sh", "-c", 'touch "$0/begun"; sleep 60', str(tmp_path)], timeout=90)
        except Retryable as error:
            caught.append(error)

    thread = threading.Thread(target=command)
    thread.start()
    wait_until((tmp_path / "begun").exists, "the command runs")
    machine.drop_connections()
    thread.join(limit())
    assert "broke during `sh -c" in str(caught[0])
    assert shell.run(["echo", "again"]).stdout == "again\n"


def test_a_file_whose_way_was_cut_keeps_its_old_content(
    machine: Machine, shell: SshShell, tmp_path: Path
) -> None:
    target = tmp_path / "file"
    shell.write_file(str(target), "old")
    failed = threading.Event()

    def write() -> None:
        try:
            shell.write_file(str(target), "x" * 100_000_000)
        except Retryable:
            failed.set()

    thread = threading.Thread(target=write)
    thread.start()
    wait_until(
        lambda: any(half.stat().st_size for half in tmp_path.glob(".sharewright.*")),
        "the first part has arrived",
    )
    machine.drop_connections()
    thread.join(limit())
    assert failed.is_set()
    wait_until(lambda: not list(tmp_path.glob(".sharewright.*")), "the half is cleared away")
    assert target.read_text() == "old"


def test_a_command_nobody_waits_for_any_more_ends_in_its_time(
    machine: Machine, shell: Shell
) -> None:
    mark = f"sleep 79.{uuid.uuid4().int % 10**9:09}"
    if (child := os.fork()) == 0:
        shell.run(mark.split(), timeout=3)
        os._exit(0)
    wait_until(lambda: runs(mark), "the command runs")
    os.kill(child, 9)
    os.waitpid(child, 0)
    wait_until(lambda: not runs(mark), "the command is gone")


def test_sshd_that_is_away_and_back(machine: Machine, shell: Shell) -> None:
    assert shell.run(["echo", "1"]).stdout == "1\n"
    machine.kill()
    with pytest.raises(Retryable):  # perhaps before it is seen here that the connection is gone
        shell.run(["true"])
    with pytest.raises(Retryable, match=f"server-1 at {machine.address} port 22 is not reached"):
        shell.run(["true"])
    machine.start()
    assert shell.run(["echo", "2"]).stdout == "2\n"


def test_a_machine_that_swallows_packets_is_retryable(lan: Lan, machine: Machine) -> None:
    shell = machine.shell(host="192.0.2.1", connect_timeout=0.5)
    with pytest.raises(Retryable) as caught:
        shell.run(["true"])
    assert caught.value.code in {ErrorCode.TIMEOUT, ErrorCode.BACKEND_UNAVAILABLE}


def test_a_changed_host_key_is_refused_and_nothing_is_sent(
    machine: Machine, shell: SshShell, tmp_path: Path
) -> None:
    shell.run(["true"])
    machine.kill()
    machine.install(host_key_pair(machine.options.ssh_private_key_file, "somebody-else")[0])
    machine.start()
    try:
        with pytest.raises(Fatal) as caught:
            shell.run(["touch", str(tmp_path / "file")])
        with pytest.raises(Fatal):
            shell.write_file(str(tmp_path / "file"), "x")
        assert connections(machine) == 0
    finally:
        machine.kill()
        machine.install(host_key_pair(machine.options.ssh_private_key_file, machine.server_id)[0])
        machine.start()
    fingerprint = asyncssh.import_public_key(shell.host_key).get_fingerprint()
    assert caught.value.message == (
        f"share server server-1 at {machine.address} port 22 does not have the SSH host key "
        f"{fingerprint} that it was built with, so nothing was sent to it. If another machine took "
        f"its address, remove that one; if the server was reinstalled, delete it with its shares."
    )
    assert list(tmp_path.iterdir()) == []
    shell.run(["true"])


def test_another_kind_of_host_key_is_not_taken_either(machine: Machine, shell: SshShell) -> None:
    machine.kill()
    machine.install(asyncssh.generate_private_key("ssh-rsa").export_private_key().decode())
    machine.start()
    try:
        with pytest.raises(Fatal, match="does not have the SSH host key"):
            shell.run(["true"])
        assert connections(machine) == 0
    finally:
        machine.kill()
        machine.install(host_key_pair(machine.options.ssh_private_key_file, machine.server_id)[0])


def test_a_key_that_is_not_let_in_is_said_and_not_shown(machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / "other"
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(file)
    with pytest.raises(LoginRefused, match=f"with the key in {file}") as caught:
        machine.shell(private_key_file=file).run(["true"])
    assert caught.value.code is ErrorCode.CONFIGURATION
    assert file.read_text().splitlines()[1] not in caught.value.message
    with pytest.raises(Fatal, match="cannot be read"):
        machine.shell(private_key_file=tmp_path / "none").run(["true"])


def test_a_server_is_waited_for_while_it_boots(lan: Lan) -> None:
    machine = lan.machine("server-2")
    options = machine.options
    attributes = ssh_attributes(options, "server-2", address=machine.address)

    def check() -> None:
        check_reachable(options, "server-2", attributes, server_id="vm-2")

    machine.kill()
    with pytest.raises(NotReady, match="is not reached") as caught:
        check()
    assert caught.value.share_server_id == "vm-2"
    machine.start()
    with pytest.raises(NotReady, match="still installs its software"):
        check()
    machine.finish_boot()
    check()
    ours = machine.directory / "authorized_keys"
    kept = ours.read_bytes()
    ours.write_bytes(b"")
    machine.drop_connections()
    with pytest.raises(NotReady, match="does not let root in"):
        check()
    ours.write_bytes(kept)
    machine.kill()
    machine.install(host_key_pair(machine.options.ssh_private_key_file, "somebody-else")[0])
    machine.start()
    with pytest.raises(Fatal, match="does not have the SSH host key") as refused:
        check()
    assert refused.value.share_server_id == "vm-2"
    assert refused.value.object == "share_server server-2"


def test_a_server_that_is_not_built_takes_no_commands(machine: Machine) -> None:
    server = dataclasses.replace(machine.server(), details=None)
    with pytest.raises(Fatal, match="server-1 is not built"):
        ssh_shell(machine.options, server)


def test_who_is_not_root_asks_sudo_for_every_command(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sudo = tmp_path / "sudo"
    sudo.write_text('#!/bin/sh\n[ "$1 $2" = "-n --" ] || exit 1\nshift 2\nexec "$@"\n')
    sudo.chmod(0o755)
    line = machine.shell(user="somebody")._line(["printf", "%s|", "a b", "$x"], 30)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout == "a b|$x|"
    sudo.write_text("#!/bin/sh\nexit 9\n")
    assert subprocess.run(["sh", "-c", line], check=False).returncode == 9
