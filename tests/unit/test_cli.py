"""The command without a running service: help, exit codes, reading, printing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pytest
from sqlalchemy import insert
from sqlalchemy.engine import make_url

from scheduler.cli import _COMMANDS, cli
from scheduler.cli.processes import waiting_for
from scheduler.cli.tables import print_object, print_rows
from scheduler.cli.timeline import Timeline
from scheduler.exits import exit_code_of
from scheduler.requests.verbs import VERBS
from tests.support.pace import limit
from tests.support.services import ROOT, free_port, python, wait_until
from worker.config import load
from worker.db import schema
from worker.db.core.engine import open_engine, transaction
from worker.db.tables.main import dead_letters, operation_steps, operations, shares
from worker.errors import Conflict, ErrorCode, Fatal, NotFound, RequestFailed


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A migrated database, and a broker that is not there."""
    url = f"sqlite:///{tmp_path}/service.db"
    schema.upgrade(url)
    broker = f"redis://127.0.0.1:{free_port()}/0"
    return {
        "HOME": str(tmp_path),
        "SHAREWRIGHT_DATABASE__URL": url,
        "SHAREWRIGHT_BROKER__URL": broker,
        "SHAREWRIGHT_BROKER__RESULT_BACKEND": broker,
    }


def run(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        python("scheduler.cli", *arguments),
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=limit(),
        check=False,
    )


def add(environment: Mapping[str, str], table: Any, **values: Any) -> None:
    engine = open_engine(make_url(environment["SHAREWRIGHT_DATABASE__URL"]))
    with transaction(engine) as connection:
        connection.execute(insert(table).values(**values))
    engine.dispose()


def add_share(environment: Mapping[str, str], share_id: str, project: str = "default") -> None:
    add(
        environment,
        shares,
        id=share_id,
        project_id=project,
        name="[red]a name",
        metadata={},
        size=3,
        share_proto="NFS",
        backend="b",
        pool="p",
        status="available",
        export_locations=[{"path": "192.0.2.1:/x", "preferred": True}],
        created_at=1.0,
        updated_at=1.0,
    )


def add_operation(environment: Mapping[str, str], operation_id: str, **values: Any) -> None:
    add(
        environment,
        operations,
        **{
            **dict.fromkeys(("verb", "saga"), "create_share"),
            "id": operation_id,
            "project_id": "default",
            "resource_kind": "share",
            "resource_id": f"of-{operation_id}",
            "payload": {},
            "payload_digest": "",
            "accepted_at": 1.0,
            **values,
        },
    )


def test_help_waits_for_no_heavy_module() -> None:
    code = (
        "import sys\n"
        "from scheduler.cli import cli\n"
        "cli.main(['--help'], standalone_mode=False)\n"
        "heavy = {'celery', 'kombu', 'sqlalchemy', 'pydantic', 'rich', 'alembic', 'netaddr'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        (sys.executable, "-c", code), cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "[]"
    assert "share-network" in done.stdout


def test_every_command_of_the_table_is_there() -> None:
    context = cli.make_context("sharewright", ["share"])
    for name in _COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        assert command.help, name


def test_a_list_of_one_project(environment: dict[str, str]) -> None:
    add_share(environment, "s1")
    add_share(environment, "s2", project="theirs")
    done = run(environment, "--json", "share", "list")
    assert done.returncode == 0, done.stderr
    assert [share["id"] for share in json.loads(done.stdout)["shares"]] == ["s1"]
    done = run(environment, "share", "list", "--all-projects", "--limit", "1")
    assert "s1" in done.stdout
    assert "[red]a name" in done.stdout
    assert "--marker s1" in done.stderr
    shown = run(environment, "share", "show", "s1")
    assert "192.0.2.1:/x" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("share", "show", "nope"), 5, "There is no share nope"),
        (("share", "create", "0"), 3, "SIZE: must be 1 or more"),
        (("share", "create", "1", "--name", "x" * 300), 3, "--name: must have 255 or fewer"),
        (("access", "allow", "s", "10.0.0"), 3, "ACCESS_TO: '10.0.0' is neither"),
        (("share", "create", "many"), 2, "not a valid integer"),
        (("share", "create", "1"), 7, "cannot be reached"),
        (("share", "list", "--marker", "nope"), 3, "marker"),
        (("nonsense",), 2, "No such command"),
        (("schema", "create_shares"), 2, "Did you mean create_share?"),
        (("operation", "list", "--state", "stuck"), 2, "compensation_failed"),
        (("share", "list", "--status", "bogus"), 2, "error_deleting"),
        (("--project", "p", "worker"), 2, "--project means nothing to"),
        (("share", "create", "1", "--home", "/nonexistent"), 7, "No service runs in /nonexistent"),
        (("share", "show", "my share"), 5, "There is no share 'my share'"),
        (("worker", "--group", "g"), 8, "No backend belongs to worker group"),
        (("dead-letter", "show", "7"), 5, "No message 7"),
    ],
)
def test_errors_are_a_sentence_and_an_exit_code(
    environment: dict[str, str], arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    done = run(environment, *arguments)
    assert done.returncode == code, done.stderr
    assert sentence in done.stderr
    assert done.stderr.splitlines()[-1].startswith("sharewright: ")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_errors_are_documents_for_programs(environment: dict[str, str]) -> None:
    refused = run(environment, "share", "show", "nope", "--json")
    assert (refused.returncode, refused.stderr) == (5, "")
    assert json.loads(refused.stdout) == {
        "error": {
            "code": "not_found",
            "message": "There is no share nope in this project.",
            "object": "share nope",
            "field": "share_id",
        }
    }
    for arguments, code, exit_code in (
        (("share", "create", "many"), "usage", 2),
        (("share", "create", "0"), "invalid_request", 3),
        (("share", "create", "1"), "unreachable", 7),
        (("scheduler",), "usage", 2),
        (("db", "upgrade", "--home", "/nonexistent/a b"), "configuration", 8),
    ):
        done = run(environment, "--json", *arguments)
        assert done.returncode == exit_code
        assert json.loads(done.stdout)["error"]["code"] == code


def leaves(
    command: click.Command, context: click.Context
) -> Iterator[tuple[click.Command, click.Context]]:
    if not isinstance(command, click.Group):
        yield command, context
        return
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        assert inner is not None
        yield from leaves(inner, click.Context(inner, parent=context, info_name=name))


def test_every_option_and_argument_is_explained() -> None:
    found = 0
    for command, context in leaves(cli, click.Context(cli, info_name="sharewright")):
        for one in command.params:
            text = getattr(one, "explained", None) or getattr(one, "help", None)
            assert text, f"{context.command_path}: {one.name}"
            found += 1
        assert command.get_help(context)
    assert found > 100


def test_a_command_imports_what_it_needs(environment: dict[str, str]) -> None:
    code = (
        "import sys\n"
        "from scheduler.cli import cli\n"
        "try:\n"
        "    cli.main(sys.argv[1:], standalone_mode=False)\n"
        "finally:\n"
        "    names = {name.partition('.')[0] for name in sys.modules}\n"
        "    print('IMPORTED', *sorted(names), file=sys.stderr)"
    )

    def imported(*arguments: str) -> set[str]:
        done = subprocess.run(
            (sys.executable, "-c", code, *arguments),
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        line = next(line for line in done.stderr.splitlines() if line.startswith("IMPORTED"))
        return set(line.split())

    heavy = {"openstack", "alembic", "asyncssh", "rich", "prometheus_client"}
    reads = imported("share", "list")
    assert "sqlalchemy" in reads
    assert not reads & {*heavy, "celery", "kombu", "redis", "psycopg"}
    changes = imported("share", "create", "1", "--no-wait")
    assert "celery" in changes
    assert not changes & {*heavy, "sqlalchemy", "psycopg"}


def test_a_name_or_the_beginning_of_an_id_stands_for_it(environment: dict[str, str]) -> None:
    ids = [f"{letter * 8}-0000-4000-8000-000000000000" for letter in "ab"]
    for share_id in ids:
        add_share(environment, share_id)
    add_share(environment, "aaaaaaaa-1")
    assert json.loads(run(environment, "share", "show", "bbbb", "--json").stdout)["id"] == ids[1]
    several = run(environment, "share", "show", "aaaa")
    assert several.returncode == 3
    assert f"aaaa may be several shares: {ids[0]}" in several.stderr
    named = run(environment, "share", "show", "[red]a name")
    assert named.returncode == 3
    assert "Give the id" in named.stderr
    assert run(environment, "share", "show", "bbb").returncode == 5, "too short to be meant"


def test_lists_go_newest_first_and_can_be_narrowed(environment: dict[str, str]) -> None:
    add_operation(environment, "old", state="running", phase="queued", accepted_at=1.0)
    add_operation(environment, "ended", state="succeeded", accepted_at=2.0)
    add_operation(environment, "new", state="pending", accepted_at=time.time())

    def listed(*options: str) -> list[str]:
        document = json.loads(run(environment, "operation", "list", "--json", *options).stdout)
        return [operation["id"] for operation in document["operations"]]

    assert listed() == ["new", "ended", "old"]
    assert listed("--limit", "2", "--marker", "ended") == ["old"]
    assert listed("--live") == ["new", "old"]
    assert listed("--older-than", "3600") == ["ended", "old"]


def test_an_operation_that_nobody_fetched_says_so(environment: dict[str, str]) -> None:
    add_operation(
        environment,
        "waits",
        state="running",
        phase="queued",
        task="create_share",
        queue="steps.gold.0",
        queued_at=time.time() - 45,
    )
    said = run(environment, "operation", "show", "waits").stdout
    assert re.search(r"published 4\d s ago to the queue steps.gold.0, not fetched yet", said)
    assert "a worker of the group gold" in said


def test_a_list_never_folds_an_id(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {
        "id": "ce040189-fa16-4701-928b-998f3bc28a3e",
        "name": "n" * 200,
        "created_at": "2026-11-28T17:34:40.123456+00:00",
        "share_network_id": "0" * 36,
    }
    columns = ("id", "name", "created_at", "share_network_id")
    print_rows([row], columns)
    head, line = capsys.readouterr().out.splitlines()
    assert (head, head.rstrip()) == (head.rstrip(), head)
    assert line.split() == [row["id"], row["name"], "2026-11-28T17:34:40", "0" * 36]
    assert line == line.rstrip()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    print_rows([row], columns)
    shown, told = capsys.readouterr()
    assert all(len(one) <= 80 for one in shown.splitlines())
    assert len(shown.splitlines()) == 2
    assert row["id"] in shown
    assert "Not shown, for want of width: created_at, share_network_id" in told


def test_a_shown_object_is_not_folded(capsys: pytest.CaptureFixture[str]) -> None:
    path = f"localhost:/{'x' * 200}"
    print_object({"id": "s", "export_locations": [{"path": path}, {"path": "b"}], "size": None})
    assert capsys.readouterr().out.splitlines() == [
        "id                s",
        f"export_locations  {path}",
        "                  b",
        "size              -",
    ]


def test_a_database_that_is_not_there_is_unreachable(environment: dict[str, str]) -> None:
    nowhere = {**environment, "SHAREWRIGHT_DATABASE__URL": "sqlite:////nonexistent/x.db"}
    done = run(nowhere, "share", "list")
    assert done.returncode == 7
    assert "Traceback" not in done.stderr


def test_a_wrong_configuration_is_a_sentence(environment: dict[str, str]) -> None:
    done = run({**environment, "SHAREWRIGHT_ENGINE__LEASE": "long"}, "share", "list")
    assert done.returncode == 8
    assert "engine.lease" in done.stderr


def test_watching_ends_as_the_operation_ended(environment: dict[str, str]) -> None:
    error = {"code": "storage_failed", "message": "The disk is full.", "object": "share x"}
    add_operation(environment, "failed", state="failed", error=error)
    add_operation(environment, "done", state="succeeded", result={"id": "s1"})
    add_operation(environment, "slow", state="running", phase="queued", task="create_share")
    add(
        environment,
        operation_steps,
        operation_id="done",
        task="create_share",
        outcome="done",
        attempt=2,
        worker="w",
        started_at=1.0,
        finished_at=2.25,
    )
    failed = run(environment, "operation", "watch", "failed")
    assert (failed.returncode, failed.stdout) == (4, "")
    assert "The disk is full." in failed.stderr
    done = run(environment, "operation", "watch", "done")
    assert (done.returncode, done.stdout.split()) == (0, ["id", "s1"])
    assert "+ create_share done (1.25 s, attempt 2)" in done.stderr
    slow = run(environment, "operation", "watch", "slow", "--timeout", "0.2")
    assert slow.returncode == 6
    quiet = run(environment, "operation", "watch", "done", "--json")
    assert (json.loads(quiet.stdout), quiet.stderr) == ({"id": "s1"}, "")


def test_poison_is_listed_without_and_shown_with_its_body(environment: dict[str, str]) -> None:
    for number in range(3):
        add(
            environment,
            dead_letters,
            fingerprint=str(number),
            queue="requests",
            reason="not JSON",
            headers={},
            body="a body",
            size=6,
            received_at=1.0,
        )
    done = run(environment, "dead-letter", "list", "--limit", "2", "--json")
    document = json.loads(done.stdout)
    assert [one["id"] for one in document["dead_letters"]] == [1, 2]
    assert document["next_marker"] == 2
    assert "a body" not in done.stdout
    assert "a body" in run(environment, "dead-letter", "show", "3").stdout


def test_schemas_of_every_verb(environment: dict[str, str]) -> None:
    document = json.loads(run(environment, "schema").stdout)
    assert set(document) == set(VERBS)
    assert "size" in document["create_share"]["required"]


def test_the_database_commands(environment: dict[str, str], tmp_path: Path) -> None:
    fresh = {**environment, "SHAREWRIGHT_DATABASE__URL": f"sqlite:///{tmp_path}/new/fresh.db"}
    for _ in range(2):
        assert run(fresh, "db", "upgrade").returncode == 0
    assert run(fresh, "db", "check", "--database").returncode == 0
    assert run(fresh, "db", "check").returncode == 0


def test_the_database_is_named_and_its_owners_alone(tmp_path: Path) -> None:
    file = tmp_path / "new" / "fresh.db"
    nothing = {"HOME": str(tmp_path), "SHAREWRIGHT_DATABASE__URL": f"sqlite:///{file}"}
    done = run(nothing, "db", "upgrade")
    assert f"sqlite:///{file}" in done.stdout
    assert "no configuration file was found" in done.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    compared = run(nothing, "db", "check", "--database")
    assert f"The database sqlite:///{file} agrees with" in compared.stderr


def test_a_database_that_does_not_answer_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []

    def is_said() -> bool:
        said.append(capsys.readouterr().err)
        return "waiting for the database" in "".join(said)

    monkeypatch.setattr("scheduler.cli.processes.SILENT_SECONDS", 0.01)
    with waiting_for("postgresql+psycopg://u:hunter2@db.example/sharewright"):
        wait_until(is_said, "the wait is told of")
    assert "u:***@db.example" in "".join(said)
    monkeypatch.setattr("scheduler.cli.processes.SILENT_SECONDS", 60)
    with waiting_for("sqlite:///x"):
        pass
    assert capsys.readouterr().err == ""


CONFIGURATION = """
[database]
url = "postgresql+psycopg://u:hunter2@db.example/sharewright"
[backends.nova]
mode = "flat_multi_svm"
share_driver = "fake"
compute_helper = "fake"
network_helpers = ["fake"]
[backends.nova.compute]
"odd name" = {password = "hunter2", url = "https://u:hunter2@example/", sizes = [1, 2.5]}
[backends.bound]
mode = "flat_multi_svm"
share_driver = "fake"
compute_helper = "fake"
network_helpers = ["fake"]
host = "elsewhere"
"""


def test_the_configuration_in_force_is_shown_without_secrets(tmp_path: Path) -> None:
    file = tmp_path / "sharewright.toml"
    file.write_text(CONFIGURATION)
    given = {"HOME": str(tmp_path), "SHAREWRIGHT_CONFIG": str(file)}
    done = run(given, "config", "show")
    assert done.returncode == 0, done.stderr
    assert "hunter2" not in done.stdout
    assert f"# The configuration of {file}." in done.stdout
    shown = tomllib.loads(done.stdout)
    assert shown["database"]["url"] == "postgresql+psycopg://u:***@db.example/sharewright"
    assert shown["backends"]["nova"]["compute"]["odd name"]["password"] == "***"
    assert shown["engine"]["lease"] == 20.0
    file.write_text(CONFIGURATION.replace("u:hunter2@", "").replace("hunter2", ""))
    copied = load(write(tmp_path / "copy.toml", run(given, "config", "show").stdout))
    assert copied == load(file)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_the_default_of_up_is_shown_and_can_be_copied(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    shown = run({"HOME": str(tmp_path)}, "config", "show", "--home", str(home)).stdout
    document = tomllib.loads(shown)
    [name] = document["backends"]
    assert document["state_dir"] == str(home / "state")
    write(
        home / "sharewright.toml",
        shown
        + shown[shown.index(f"[backends.{name}") :].replace(
            f"[backends.{name}", "[backends.second"
        ),
    )
    both = run({"HOME": str(tmp_path)}, "config", "check", "--home", str(home))
    assert both.returncode == 0, both.stderr
    assert "second" in both.stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '[backends."büro"]\nmode = "single_svm"\nshare_driver = "fake"',
            "the name of backend 'büro'",
        ),
        (
            '[backends."a b"]\nmode = "single_svm"\nshare_driver = "fake"',
            "the name of backend 'a b'",
        ),
        ('[backends.".."]\nmode = "single_svm"\nshare_driver = "fake"', "the name of backend '..'"),
        (
            'state_dir = "/var/lib/share wright"',
            "state_dir: '/var/lib/share wright' cannot be used",
        ),
        ('state_dir = "here"', "absolute path"),
        ('[database]\nurl = "postgresql+psycopg://u:p@ss@h/db"', "@ is %40"),
        ('[database]\nurl = "mysql://h/db"', "begins with neither sqlite://"),
        ("[engine]\nlease = 0", "engine.lease: must be more than 0"),
        ("[engine]\nleese = 1", "engine.leese: is not known; check its spelling"),
        ("", "no backend"),
        (
            '[backends.a]\nmode = "single_svm"\nshare_driver = "fake"\ndriver.x = 1',
            "[backends.a.driver]: x: is not known",
        ),
    ],
)
def test_a_configuration_that_cannot_be_used(tmp_path: Path, text: str, said: str) -> None:
    file = write(tmp_path / "sharewright.toml", text)
    done = run({"HOME": str(tmp_path), "SHAREWRIGHT_CONFIG": str(file)}, "config", "check")
    assert done.returncode == 8
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "p@ss" not in done.stderr


def test_refusals_and_failures_have_codes_of_their_own() -> None:
    assert exit_code_of(NotFound("x")) == 5
    assert exit_code_of(Conflict("x")) == 3
    assert exit_code_of(Fatal("x", code=ErrorCode.INTERNAL)) == 4
    assert exit_code_of(RequestFailed(ErrorCode.NOT_FOUND, "x")) == 5
    assert exit_code_of(RequestFailed(ErrorCode.CONFLICT, "x")) == 3
    assert exit_code_of(RequestFailed(ErrorCode.STORAGE_FAILED, "x")) == 4
    assert exit_code_of(ValueError("x")) is None


def test_lines_of_a_timeline_come_once(capsys: pytest.CaptureFixture[str]) -> None:
    step = {"task": "a", "outcome": "done", "attempt": 1, "seconds": 0.1, "message": ""}
    operation = {
        "id": "op",
        "verb": "create_share",
        "state": "running",
        "phase": "waiting",
        "task": "b",
        "waits_for": "share_server:k",
        "attempts": 1,
        "steps": [step],
    }
    with Timeline(quiet=False) as timeline:
        timeline.show(operation)
        timeline.show(operation)
        timeline.show({**operation, "phase": None, "state": "succeeded"})
    assert capsys.readouterr().err.splitlines() == [
        "+ a done (0.10 s)",
        "= b waits for share_server:k",
        "= create_share succeeded",
    ]
