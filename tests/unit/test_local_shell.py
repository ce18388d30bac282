"""The shell on this host: exit codes, time limits, files."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from worker.errors import ErrorCode, Fatal, LeaseLost, Retryable
from worker.systems.local import LocalShell
from worker.systems.shell import Guarded, locked

SHELL = LocalShell()


def test_exit_code_and_output_are_exact() -> None:
    done = SHELL.run(["sh", "-c", "cat; echo err >&2; exit 7"], stdin="in", check=False)
    assert (done.exit_code, done.stdout, done.stderr) == (7, "in", "err\n")
    with pytest.raises(Fatal, match="exit code 7"):
        SHELL.run(["sh", "-c", "exit 7"])


def test_what_takes_too_long_is_ended_with_its_children() -> None:
    begun = time.monotonic()
    with pytest.raises(Retryable) as caught:
        SHELL.run(["sh", "-c", "sleep 77.125 & wait"], timeout=0.3)
    assert caught.value.code is ErrorCode.TIMEOUT
    assert time.monotonic() - begun < 5
    assert SHELL.run(["pgrep", "-xf", "sleep 77.125"], check=False).exit_code == 1


def test_a_missing_command_or_namespace_is_said() -> None:
    with pytest.raises(Fatal, match="not installed") as caught:
        SHELL.run(["sharewright-has-no-such-command"])
    assert caught.value.code is ErrorCode.CONFIGURATION
    with pytest.raises(Retryable, match="does not exist"):
        LocalShell("sharewright-no-such-namespace").run(["true"])


def test_commands_do_not_see_the_workers_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHAREWRIGHT_DATABASE__URL", "secret")
    assert "secret" not in SHELL.run(["env"]).stdout


def test_a_file_is_never_seen_half_written(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file"
    contents = {letter * 50_000 for letter in "ab"}
    seen: set[str | None] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(SHELL.read_file(str(target)))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        for content in contents:
            SHELL.write_file(str(target), content, mode=0o600)
    done.set()
    reader.join()
    assert seen <= contents | {None}
    assert target.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in target.parent.iterdir()] == ["file"]
    SHELL.remove_file(str(target))
    SHELL.remove_file(str(target))
    assert SHELL.read_file(str(target)) is None


def test_a_guarded_shell_asks_before_each_change(tmp_path: Path) -> None:
    def lost() -> None:
        raise LeaseLost("gone")

    shell = Guarded(SHELL, lost)
    target = str(tmp_path / "file")
    for call in (
        lambda: shell.run(["touch", target]),
        lambda: shell.write_file(target, "x"),
        lambda: shell.remove_file(target),
    ):
        with pytest.raises(LeaseLost):
            call()
    assert list(tmp_path.iterdir()) == []


def test_only_one_holds_a_lock(tmp_path: Path) -> None:
    lock, log = str(tmp_path), str(tmp_path / "log")
    script = 'echo in >> "$1"; sleep 0.1; echo out >> "$1"'
    threads = [threading.Thread(target=locked, args=(SHELL, lock, script, log)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Path(log).read_text().split() == ["in", "out"] * 4
    held = threading.Thread(target=locked, args=(SHELL, lock, "sleep 1"))
    held.start()
    time.sleep(0.2)
    with pytest.raises(Retryable, match="Another worker"):
        locked(SHELL, lock, "true", timeout=0.6)
    held.join()
