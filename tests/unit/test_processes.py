"""How processes of the service are named, and where they refuse to keep their files."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.service.home import Home
from scheduler.service.up import run_up
from worker import app
from worker.app import check_state_dir, own_name
from worker.config import Config
from worker.errors import ConfigurationError


def test_workers_of_one_host_have_names_of_their_own(tmp_path: Path) -> None:
    broker, other = f"redis+socket://{tmp_path}/a", f"redis+socket://{tmp_path}/b"
    before = len(app._names_taken)
    try:
        assert [own_name("gold", broker) for _ in range(3)] == ["gold", "gold-2", "gold-3"]
        assert own_name("gold", other) == "gold"
        app._names_taken.pop(before + 1).close()
        assert own_name("gold", broker) == "gold-2", "a restart gets the name that is free again"
    finally:
        while len(app._names_taken) > before:
            app._names_taken.pop().close()


def test_a_state_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_state_dir(Config(state_dir=tmp_path / "new"))
    with pytest.raises(ConfigurationError, match="change state_dir"):
        check_state_dir(Config(state_dir=tmp_path / "file" / "below"))


@pytest.mark.parametrize(
    ("name", "said"), [("a home", "letters, digits"), ("file/below", "choose another --home")]
)
def test_a_home_that_cannot_be_used(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "file").write_text("")
    home = Home.at(tmp_path / name)
    with pytest.raises(ConfigurationError, match=said):
        run_up(home, concurrency=1, grace=1, log_level=None)
    assert not home.path.exists()
