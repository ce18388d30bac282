"""Tests of a test: what ``make run`` compares at its end finds one of each leftover."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, insert, update

from tests.conftest import StartProcess
from tests.support import leftovers, plant
from tests.support.isolation import fresh, isolated
from tests.support.real import take_away
from tests.support.services import Process, python, require_root, require_root_datapath
from worker.db.core.engine import engine_for, transaction
from worker.db.schema import upgrade
from worker.db.tables.all import metadata

KINDS = {
    plant.namespace: "namespaces",
    plant.link: "links",
    plant.mount: "mounts",
    plant.loop: "loops",
    plant.process_by_command_line: "processes",
    plant.process_by_open_file: "processes",
    plant.process_by_directory: "processes",
}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """A database with its tables, outside the home of the run."""
    url = f"sqlite:///{tmp_path}/sharewright.db"
    upgrade(url)
    engine = engine_for(url)
    yield engine
    engine.dispose()


@pytest.mark.parametrize(("planted", "kind"), KINDS.items())
def test_what_bears_a_mark_is_found(
    tmp_path: Path, engine: Engine, planted: plant.Planted, kind: str
) -> None:
    require_root()
    home, gone = tmp_path / "home", str(uuid.uuid4())
    home.mkdir()
    with transaction(engine) as connection:
        connection.execute(
            insert(metadata.tables["tombstones"]).values(
                kind="share_server", id=gone, backend="b", gone_at=0.0
            )
        )
    marks = leftovers.marks(home, engine)
    assert list(leftovers.of_run(marks)) == []
    with planted(home, gone):
        found = list(leftovers.of_run(marks))
    # A namespace's name is a mount too.
    kinds = {sentence.partition(": left behind: ")[0] for sentence in found}
    assert kinds == ({"namespaces", "mounts"} if kind == "namespaces" else {kind}), found
    assert list(leftovers.of_run(marks)) == []


@pytest.mark.parametrize(("planted", "kind"), KINDS.items())
def test_what_belongs_to_another_run_is_not_found(
    tmp_path: Path, engine: Engine, planted: plant.Planted, kind: str
) -> None:
    require_root()
    home, other = tmp_path / "home", tmp_path / "home-of-another"
    home.mkdir()
    other.mkdir()
    with planted(other, str(uuid.uuid4())):
        assert list(leftovers.of_run(leftovers.marks(home, engine))) == [], kind


@pytest.mark.parametrize(("planted", "kind"), [*KINDS.items(), (plant.file, "files")])
def test_in_namespaces_of_its_own_a_run_sees_what_bears_no_mark(
    planted: plant.Planted, kind: str
) -> None:
    require_root()
    done = subprocess.run(
        isolated(python("tests.support.plant", planted.__name__)),
        capture_output=True,
        text=True,
        check=False,
    )
    found, _, then = done.stdout.partition("then\n")
    assert f"{kind}: left behind" in found, done
    assert then == ""


def test_files_are_found(tmp_path: Path) -> None:
    with plant.file(tmp_path, "planted"):
        (found,) = leftovers.of_files(tmp_path / "state")
    assert found.endswith("/state/file-planted")
    assert list(leftovers.of_files(tmp_path / "state")) == []


STORY = python("tests.story")


def assert_ends_well(story: Process) -> None:
    assert story.wait() == 0, story.output()
    assert story.output().splitlines()[-1].startswith("OK: "), story.output()


@pytest.mark.parametrize("how", [(), ("--outside",)], ids=["namespaces of its own", "marks only"])
def test_the_first_run_on_a_fresh_machine_ends_well(
    start_process: StartProcess, how: tuple[str, ...]
) -> None:
    require_root_datapath()
    assert_ends_well(start_process(fresh((*STORY, *how))))


@contextmanager
def running(home: Path) -> Iterator[Process]:
    """A ``sharewright up`` that takes its storage away when it ends."""
    home.mkdir()
    process = Process(python("scheduler.cli", "up", "--home", str(home)), log=home / "up.log")
    try:
        yield process.start("ready:")
        process.terminate()
    finally:
        process.close()
        take_away(home, [str(home)])


def test_runs_at_the_same_time_do_not_disturb_each_other(
    start_process: StartProcess, tmp_path: Path
) -> None:
    """Two stories; one service is there before, and another comes and goes beside them."""
    require_root_datapath()
    with running(tmp_path / "before") as before:
        stories = [start_process(STORY), start_process((*STORY, "--outside"))]
        with running(tmp_path / "meanwhile"):
            pass
        for story in stories:
            assert_ends_well(story)
        assert before.running


def test_on_the_fakes_each_line_of_the_story_says_so(start_process: StartProcess) -> None:
    require_root()
    story = start_process(("setpriv", "--bounding-set=-net_admin", *STORY))
    assert story.wait() == 0, story.output()
    lines = story.output().splitlines()
    assert lines[0].startswith("No namespaces of the story's own (")
    assert lines[1].startswith("No NFS on this machine: root without CAP_NET_ADMIN.")
    assert lines[-1].startswith("OK (fakes): ")
    told = lines[3:-1]
    assert len(told) > 20
    assert [line for line in told if not line.endswith(" (fake)")] == []


def test_the_tables_are_counted(engine: Engine) -> None:
    assert list(leftovers.of_tables(engine)) == []
    pools = metadata.tables["storage_pools"]
    addresses = metadata.tables["addresses"]
    with transaction(engine) as connection:
        connection.execute(
            insert(metadata.tables["share_server_refs"]).values(
                share_id="s", share_server_id="v", operation_id="o", gib=1
            )
        )
        connection.execute(
            insert(pools).values(
                backend="b",
                name="p",
                total_gib=1,
                free_gib=1,
                capabilities={},
                reported_at=0.0,
                allocated_gib=1,
            )
        )
        connection.execute(
            insert(addresses).values(
                domain="d", number="0", address="10.0.0.1", share_server_id="v"
            )
        )
    found = "\n".join(leftovers.of_tables(engine))
    assert "share_server_refs still has 1 row" in found
    assert "pool of backend b is still promised" in found
    assert "address 10.0.0.1 is still held" in found
    with transaction(engine) as connection:
        connection.execute(metadata.tables["share_server_refs"].delete())
        connection.execute(update(pools).values(allocated_gib=0))
        connection.execute(update(addresses).values(share_server_id=None))
    assert list(leftovers.of_tables(engine)) == []
