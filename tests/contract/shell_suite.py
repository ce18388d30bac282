"""What every shell must do. Inherit :class:`ShellContract` and give the fixtures.

``shell``  the shell under test, on a machine whose files and processes are this host's too
"""

from __future__ import annotations

import subprocess
import threading
import uuid
from pathlib import Path
from typing import ClassVar, Final

import pytest

from tests.support.services import wait_until
from worker.errors import ErrorCode, Fatal, Retryable
from worker.systems.shell.base import Shell, locked

ODD: Final = (
    *("", " ", "a b", "'", '"', "\\", "$HOME", "`id`", "$(id)", "*", "~", "-n", "--", "a;b", "&"),
    *("\n", "tab\t", "\r", "ü", "#x", "x=1", "!", "%s", "{a,b}"),
)
"""What a command line's parser would make something else of."""


def runs(pattern: str) -> bool:
    """Whether a command with exactly this command line runs."""
    done = subprocess.run(["pgrep", "-xf", pattern], capture_output=True, check=False)
    return done.returncode == 0


class ShellContract:
    """The contract; see :class:`worker.systems.shell.base.Shell`."""

    module: ClassVar[str]
    """Where the shell is; its ``_GRACE`` is how long a command has between SIGTERM and SIGKILL."""

    def test_exit_code_and_output_are_exact(self, shell: Shell) -> None:
        done = shell.run(["sh", "-c", "cat; echo err >&2; exit 7"], stdin="in", check=False)
        assert (done.exit_code, done.stdout, done.stderr) == (7, "in", "err\n")
        assert done.argv == ("sh", "-c", "cat; echo err >&2; exit 7")
        with pytest.raises(Fatal, match=r"exit code 7.*: why"):
            shell.run(["sh", "-c", "echo why >&2; exit 7"])

    @pytest.mark.parametrize("code", [1, 66, 124, 125, 126, 127, 137, 143, 254, 255])
    def test_no_exit_code_has_a_meaning_of_its_own(self, shell: Shell, code: int) -> None:
        assert shell.run(["sh", "-c", f"exit {code}"], check=False).exit_code == code

    def test_a_command_that_a_signal_ended(self, shell: Shell) -> None:
        assert shell.run(["sh", "-c", "kill -KILL $$"], check=False).exit_code == -9
        assert shell.run(["sh", "-c", "kill -TERM $$"], check=False).exit_code == -15

    def test_arguments_arrive_as_they_are(self, shell: Shell) -> None:
        assert shell.run(["printf", "%s\\0", *ODD]).stdout.split("\0") == [*ODD, ""]
        with pytest.raises(ValueError, match="null byte"):
            shell.run(["echo", "a\0b"])

    def test_input_and_output_of_any_size_pass_at_once(self, shell: Shell) -> None:
        text = "0123456789abcde\n" * 200_000
        both = shell.run(["sh", "-c", "tee /dev/stderr"], stdin=text)
        assert both.stdout == text
        assert both.stderr == text
        # A command that reads nothing does not have to.
        assert shell.run(["echo", "done"], stdin=text).stdout == "done\n"

    def test_output_is_not_touched(self, shell: Shell) -> None:
        done = shell.run(["printf", r"a\r\nb\rc\n\377"])
        assert done.stdout == "a\r\nb\rc\n\N{REPLACEMENT CHARACTER}"

    def test_without_input_there_is_nothing_to_read(self, shell: Shell) -> None:
        assert shell.run(["cat"], timeout=10).stdout == ""
        assert shell.run(["cat"], stdin="", timeout=10).stdout == ""

    def test_what_takes_too_long_is_ended_with_its_children(self, shell: Shell) -> None:
        mark = f"sleep 77.{uuid.uuid4().int % 10**9:09}"
        with pytest.raises(Retryable, match=r"did not end within 0\.3 s") as caught:
            shell.run(["sh", "-c", f"{mark} & wait"], timeout=0.3)
        assert caught.value.code is ErrorCode.TIMEOUT
        wait_until(lambda: not runs(mark), "its child is gone")

    def test_what_does_not_heed_sigterm_is_killed(
        self, shell: Shell, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(f"{self.module}._GRACE", 0.3)
        mark = f"sleep 78.{uuid.uuid4().int % 10**9:09}"
        with pytest.raises(Retryable) as caught:
            shell.run(["sh", "-c", f'trap "" TERM; {mark}'], timeout=0.3)
        assert caught.value.code is ErrorCode.TIMEOUT
        wait_until(lambda: not runs(mark), "it is gone")

    def test_a_missing_command_is_said(self, shell: Shell) -> None:
        with pytest.raises(
            Fatal, match=r"sharewright-has-no-such-command.* is not installed"
        ) as it:
            shell.run(["sharewright-has-no-such-command"], check=False)
        assert it.value.code is ErrorCode.CONFIGURATION

    def test_commands_do_not_see_the_workers_settings(
        self, shell: Shell, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SHAREWRIGHT_DATABASE__URL", "secret")
        names = {line.split("=")[0] for line in shell.run(["env"]).stdout.splitlines()}
        assert names == {"PATH", "LC_ALL", "HOME"}
        assert shell.run(["sh", "-c", "echo $LC_ALL; pwd"]).stdout == "C\n/\n"

    def test_a_file_is_never_seen_half_written(self, shell: Shell, tmp_path: Path) -> None:
        target = tmp_path / "new" / "file"
        contents = [letter * 50_000 for letter in "ab"]
        shell.write_file(str(target), contents[0])
        seen: set[str] = set()
        done = threading.Event()

        def read() -> None:
            while not done.is_set():
                seen.add(target.read_text())

        reader = threading.Thread(target=read)
        reader.start()
        for _ in range(10):
            for content in contents:
                shell.write_file(str(target), content, mode=0o600)
        done.set()
        reader.join()
        assert seen <= set(contents)
        assert target.stat().st_mode & 0o777 == 0o600
        assert [one.name for one in target.parent.iterdir()] == ["file"]

    @pytest.mark.parametrize("content", ["", "no newline", "a\r\nb\n\n", "ü\t\\n'\"$x"])
    def test_files_come_back_as_they_went(self, shell: Shell, tmp_path: Path, content: str) -> None:
        target = tmp_path / "a file's $name"
        assert shell.read_file(str(target)) is None
        shell.write_file(str(target), content)
        assert target.read_bytes() == content.encode()
        assert target.stat().st_mode & 0o777 == 0o644
        assert shell.read_file(str(target)) == content
        shell.remove_file(str(target))
        assert not target.exists()
        shell.remove_file(str(target))
        assert shell.read_file(str(target)) is None

    def test_a_file_that_cannot_be_written_read_or_removed_is_named(
        self, shell: Shell, tmp_path: Path
    ) -> None:
        (tmp_path / "directory").mkdir()
        (tmp_path / "file").touch()
        with pytest.raises(Fatal, match=f"Cannot write {tmp_path}/file/below"):
            shell.write_file(f"{tmp_path}/file/below", "x")
        with pytest.raises(Fatal, match=f"Cannot write {tmp_path}/directory"):
            shell.write_file(f"{tmp_path}/directory", "x")
        with pytest.raises(Fatal, match=f"Cannot read {tmp_path}/directory"):
            shell.read_file(f"{tmp_path}/directory")
        with pytest.raises(Fatal, match=f"Cannot remove {tmp_path}/directory"):
            shell.remove_file(f"{tmp_path}/directory")
        assert sorted(one.name for one in tmp_path.iterdir()) == ["directory", "file"]

    def test_only_one_holds_a_lock(self, shell: Shell, tmp_path: Path) -> None:
        lock, log = str(tmp_path), tmp_path / "log"
        script = 'echo in >> "$1"; sleep 0.1; echo out >> "$1"'
        threads = [
            threading.Thread(target=locked, args=(shell, lock, script, str(log))) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert log.read_text().split() == ["in", "out"] * 4
        flag = tmp_path / "held"
        holding = 'touch "$1"; while [ -e "$1" ]; do sleep 0.05; done'
        held = threading.Thread(target=locked, args=(shell, lock, holding, str(flag)))
        held.start()
        wait_until(flag.exists, "the lock is held")
        with pytest.raises(Retryable, match="Another worker"):
            locked(shell, lock, "true", timeout=0.6)
        flag.unlink()
        held.join()
