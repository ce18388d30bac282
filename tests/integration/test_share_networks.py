"""Share networks by message and by command: what is refused, and whose they are."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import update

from scheduler.cli import cli
from scheduler.exits import EXIT_REFUSED, exit_code_of
from tests.support.intake import Intake, take_in
from tests.support.network_options import VALUES, fields, forbidden
from tests.support.services import python
from worker.db.core.engine import transaction
from worker.db.tables.main import operations, share_networks, share_servers, shares
from worker.errors import Conflict, RequestFailed

PAIRS = forbidden(largest=2)
"""Every single option and every pair that makes no share network."""


@pytest.fixture(autouse=True)
def _no_default(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test leaves a default share network behind."""
    if "intake" not in request.fixturenames:
        yield
        return
    intake: Intake = request.getfixturevalue("intake")
    yield
    with transaction(intake.engine) as connection:
        connection.execute(update(share_networks).values(is_default=False))


def as_admin(intake: Intake, verb: str, network: str, **values: Any) -> dict[str, Any]:
    return intake.ask(verb, project="admins", admin=True, share_network_id=network, **values)


def public(intake: Intake, **values: Any) -> str:
    """A public share network of the administrators' project."""
    made = intake.ask(
        "create_share_network",
        project="admins",
        admin=True,
        is_public=True,
        flat_network_ip_pool=["10.0.0.0/24"],
        **values,
    )
    assert (made["is_public"], made["is_default"]) == (True, False)
    return str(made["id"])


def refused(
    intake: Intake, verb: str, project: str, code: str, *, admin: bool = False, **values: Any
) -> RequestFailed:
    failed = intake.refusal(verb, intake.payload(project, **values), admin=admin)
    assert failed.code == code, failed
    return failed


def row(intake: Intake, network: str) -> Any:
    (found,) = intake.rows(share_networks, id=network)
    return found


def share_on(intake: Intake, project: str, network: str | None = None, **values: Any) -> Any:
    """A share that is being created; its row."""
    named = {} if network is None else {"share_network_id": network}
    accepted = intake.accepted("create_share", project, size=1, **named, **values)
    (found,) = intake.rows(shares, id=intake.operation(accepted).resource_id)
    return found


# Options that make no share network.


@pytest.mark.parametrize("chosen", PAIRS, ids="+".join)
def test_forbidden_by_message(intake: Intake, project: str, chosen: tuple[str, ...]) -> None:
    failed = refused(intake, "create_share_network", project, "invalid_request", **fields(chosen))
    assert failed.field in VALUES
    assert any(name in failed.message for name in chosen)


def test_forbidden_in_an_update(intake: Intake, project: str) -> None:
    network = intake.network(project)
    before = row(intake, network)
    for chosen in PAIRS:
        failed = refused(
            intake,
            "update_share_network",
            project,
            "invalid_request",
            share_network_id=network,
            **fields(chosen),
        )
        assert failed.field in VALUES
    assert row(intake, network) == before


def as_options(chosen: tuple[str, ...]) -> list[str]:
    found = []
    for name, value in fields(chosen).items():
        option = f"--{name.replace('_', '-')}"
        found += (
            [option] if value is True else [option, *([value] if isinstance(value, str) else value)]
        )
    return found


@pytest.mark.parametrize("verb", ["create", "update"])
@pytest.mark.parametrize("chosen", PAIRS, ids="+".join)
def test_forbidden_by_command(tmp_path: Path, verb: str, chosen: tuple[str, ...]) -> None:
    """Refused before anything is sent: there is no service in this home."""
    # A whole id: for a name, the service would be asked.
    named = ["8b8eb1a1-0000-4000-8000-000000000000"] if verb == "update" else []
    command = ["--home", str(tmp_path), "share-network", verb, *named, *as_options(chosen)]
    done = CliRunner().invoke(cli, command)
    assert isinstance(done.exception, Exception)
    assert exit_code_of(done.exception) == EXIT_REFUSED, done.output
    assert any(name in str(done.exception) for name in chosen)


def test_the_commands_own_words(intake: Intake, start_process: Any) -> None:
    """The whole command once: accepted, refused with exit code 3, and shown."""
    base = ("scheduler.cli", "--json", "--project", "by-command", "share-network")

    def run(*arguments: str) -> tuple[int, str]:
        process = start_process(python(*base, *arguments), env=intake.env)
        code = process.wait()
        return code, process.log.read_text()

    code, said = run("create", "--nova-network-id", "n", "--dhcp-endpoint", "10.0.0.2")
    assert code == EXIT_REFUSED
    assert "nova_network_id and dhcp_endpoint exclude each other" in said
    code, said = run("create", "--managed", "--cidr", "10.9.0.0/24", "--public", "--name", "m")
    assert code == 0, said
    made = json.loads(said)
    assert (made["kind"], made["cidr"], made["is_public"]) == ("managed", "10.9.0.0/24", True)
    for words, field in (
        (("set-default", made["id"]), "is_default"),
        (("unset-default", made["id"]), None),
        (("update", made["id"], "--admin", "--dhcp-endpoint", "[fd00::1]:547"), "dhcp_endpoint"),
        (("unpublish", made["id"]), None),
        (("update", made["id"], "--name", "other"), "name"),
        (("publish", made["id"]), "is_public"),
    ):
        code, said = run(*words)
        assert code == 0, said
        assert field is None or json.loads(said)[field]
    code, said = run("delete", made["id"])
    assert (code, "only an administrator" in said) == (EXIT_REFUSED, True)
    assert run("delete", made["id"], "--admin")[0] == 0


# Public ones: everybody's to use, an administrator's to change.


def test_only_an_administrator_makes_a_public_one(intake: Intake, project: str) -> None:
    failed = refused(intake, "create_share_network", project, "forbidden", is_public=True)
    assert failed.field == "is_public"
    own = intake.network(project)
    for verb in (
        *("publish_share_network", "unpublish_share_network"),
        *("set_default_share_network", "unset_default_share_network"),
    ):
        refused(intake, verb, project, "forbidden", share_network_id=own)
    assert not row(intake, own).is_public


@pytest.mark.parametrize("whose", ["another project", "its own project"])
def test_a_project_cannot_change_or_delete_a_public_network(
    intake: Intake, project: str, whose: str
) -> None:
    asking = project if whose == "another project" else "admins"
    network = public(intake, name="everybody's")
    before = row(intake, network)
    for verb, values in (
        ("delete_share_network", {}),
        ("update_share_network", {"name": "mine"}),
        ("update_share_network", {"metadata": {"owner": "me"}}),
        ("update_share_network", {"nova_network_id": "n"}),
    ):
        failed = refused(intake, verb, asking, "forbidden", share_network_id=network, **values)
        assert "only an administrator" in failed.message
    as_default = as_admin(intake, "set_default_share_network", network)
    assert as_default["is_default"]
    for verb in ("delete_share_network", "update_share_network"):
        refused(intake, verb, asking, "forbidden", share_network_id=network)
    assert row(intake, network)[:4] == before[:4]
    # Seen and used all the same.
    assert intake.ask("show_share_network", project=project, share_network_id=network)["is_public"]
    listed = intake.ask("list_share_networks", project=project, limit=1000)["share_networks"]
    assert network in {one["id"] for one in listed}
    assert share_on(intake, project, network).share_network_id == network


def test_another_projects_own_network_does_not_exist(intake: Intake, project: str) -> None:
    network = intake.network(project)
    for verb in ("delete_share_network", "update_share_network", "show_share_network"):
        refused(intake, verb, "others", "not_found", share_network_id=network)
    refused(intake, "create_share", "others", "not_found", size=1, share_network_id=network)
    listed = intake.ask("list_share_networks", project="others", limit=1000)["share_networks"]
    assert network not in {one["id"] for one in listed}


def test_made_private_only_when_no_other_project_uses_it(intake: Intake, project: str) -> None:
    network = intake.network(project)
    assert as_admin(intake, "publish_share_network", network)["is_public"]
    own = share_on(intake, project, network)
    others = [share_on(intake, f"{project}-{number}", network) for number in range(6)]
    failed = refused(
        intake,
        "unpublish_share_network",
        "admins",
        "conflict",
        admin=True,
        share_network_id=network,
    )
    assert failed.message.count("share ") - failed.message.count("share network") == 5
    assert own.id not in failed.message
    for share in others:
        intake.set(shares, share.id, share_network_id=None)
    failed = refused(
        intake, "delete_share_network", "admins", "conflict", admin=True, share_network_id=network
    )
    assert own.id in failed.message
    assert not as_admin(intake, "unpublish_share_network", network)["is_public"]
    # Its project's again: it may change it, others do not see it.
    changed = intake.ask(
        "update_share_network", project=project, share_network_id=network, name="ours"
    )
    assert changed["name"] == "ours"
    refused(intake, "update_share_network", "others", "not_found", share_network_id=network)


def test_the_default(intake: Intake, project: str) -> None:
    private, first, second = intake.network("admins"), public(intake), public(intake)
    default = "set_default_share_network"
    failed = refused(intake, default, "admins", "conflict", admin=True, share_network_id=private)
    assert "not public" in failed.message
    assert as_admin(intake, default, first)["is_default"]
    assert as_admin(intake, default, second)["is_default"]
    assert not row(intake, first).is_default
    for verb, words in (
        ("unpublish_share_network", "cannot be made private"),
        ("delete_share_network", "cannot be deleted"),
    ):
        failed = refused(intake, verb, "admins", "conflict", admin=True, share_network_id=second)
        assert words in failed.message
    none = "unset_default_share_network"
    refused(intake, none, "admins", "conflict", admin=True, share_network_id=first)
    assert not as_admin(intake, none, second)["is_default"]
    assert as_admin(intake, "delete_share_network", second)["status"] == "deleted"
    refused(intake, default, "admins", "not_found", admin=True, share_network_id=second)


def test_many_administrators_at_once_leave_one_default(intake: Intake) -> None:
    networks = [public(intake) for _ in range(4)]
    sent = [
        intake.send(
            "set_default_share_network",
            intake.payload("admins", share_network_id=networks[number % 4]),
            admin=True,
        )
        for number in range(40)
    ]
    assert all(intake.outcome(request)["is_default"] for request in sent)
    defaults = [one.id for one in intake.rows(share_networks, is_default=True)]
    assert len(defaults) == 1
    assert defaults[0] in networks


# In use.


def test_options_of_one_that_nothing_uses(intake: Intake, project: str) -> None:
    network = intake.network(project)

    def change(**values: Any) -> dict[str, Any]:
        return intake.ask(
            "update_share_network", project=project, share_network_id=network, **values
        )

    changed = change(flat_network_ip_pool=["10.0.7.0/24"], flat_network_gateway="10.0.7.1")
    assert changed["flat_network_gateway"] == "10.0.7.1"
    # Options replace all that there were, also those of another kind.
    changed = change(dhcp_endpoint="10.0.0.2:67", name="by dhcp")
    assert (changed["kind"], changed["dhcp_endpoint"], changed["name"]) == (
        *("dhcp", "10.0.0.2:67", "by dhcp"),
    )
    assert changed["flat_network_ip_pool"] is changed["flat_network_gateway"] is None
    assert change(managed=True)["kind"] == "managed"
    assert change(description="d", metadata={"a": "b"})["kind"] == "managed"
    assert row(intake, network).metadata == {"a": "b"}
    assert row(intake, network).name == "by dhcp"


def test_options_of_one_in_use_stay(intake: Intake, project: str) -> None:
    network = intake.network(project)
    users = {share_on(intake, project, network).id for _ in range(7)}
    for verb, values in (
        ("update_share_network", {"nova_network_id": "n"}),
        ("update_share_network", {"flat_network_ip_pool": ["10.0.0.0/25"]}),
        ("delete_share_network", {}),
    ):
        failed = refused(intake, verb, project, "conflict", share_network_id=network, **values)
        listed, found, rest = failed.message.partition(" more; ")
        assert found, rest
        named, _, count = listed.split(" in use by ")[1].rpartition(" and ")
        named_users = named.split(", ")
        assert len(named_users) == 5
        # The seven shares and the operations that create them; of those, some have ended.
        assert 2 <= int(count) <= 9
        assert {user.removeprefix("share ") for user in named_users} < users
    # What is no option changes all the same.
    changed = intake.ask(
        "update_share_network", project=project, share_network_id=network, name="busy"
    )
    assert (changed["name"], changed["kind"]) == ("busy", "flat_pool")


def test_servers_and_operations_are_users_too(intake: Intake, project: str) -> None:
    network = intake.network(project)
    share = share_on(intake, project, network)
    (operation,) = intake.rows(operations, resource_id=share.id)
    server = str(uuid.uuid4())
    with transaction(intake.engine) as connection:
        connection.execute(
            share_servers.insert().values(
                id=server,
                project_id=project,
                share_network_id=network,
                backend="fake",
                status="active",
                builder_id=operation.id,
                created_at=1.0,
                updated_at=1.0,
            )
        )
    failed = refused(intake, "delete_share_network", project, "conflict", share_network_id=network)
    assert f"share {share.id}, operation {operation.id};" in failed.message
    # A project deletes no share servers; they go with the last share.
    assert server not in failed.message


# Requests that name none.


def test_the_default_takes_what_names_none(intake: Intake, project: str) -> None:
    assert share_on(intake, project).share_network_id is None
    network = public(intake)
    as_admin(intake, "set_default_share_network", network)
    share = share_on(intake, project)
    assert (share.share_network_id, share.backend) == (network, "fake")
    own = intake.network(project)
    assert share_on(intake, project, own).share_network_id == own


def test_single_svm_stays_reachable_beside_a_default(intake: Intake, project: str) -> None:
    as_admin(intake, "set_default_share_network", public(intake))
    name = f"single-{uuid.uuid4()}"
    intake.ask(
        "create_share_type",
        project="admins",
        admin=True,
        name=name,
        extra_specs={"driver_mode": "single_svm"},
    )
    share = share_on(intake, project, share_type=name)
    assert (share.share_network_id, share.backend) == (None, "small")
    none = intake.ask("create_share_network", project=project)
    assert none["kind"] == "none"
    share = share_on(intake, project, none["id"])
    assert (share.share_network_id, share.backend) == (none["id"], "small")


def test_a_share_types_own_default(intake: Intake, project: str) -> None:
    as_admin(intake, "set_default_share_network", public(intake))
    of_type, own = public(intake), intake.network(project)

    def share_type(network: str, **specs: str) -> dict[str, Any]:
        return {
            "name": f"type-{uuid.uuid4()}",
            "extra_specs": {"share_network_id": network, **specs},
        }

    def made(values: dict[str, Any]) -> str:
        intake.ask("create_share_type", project="admins", admin=True, **values)
        return str(values["name"])

    everybodys, private = made(share_type(of_type)), made(share_type(own))
    assert share_on(intake, project, share_type=everybodys).share_network_id == of_type
    assert share_on(intake, project, own, share_type=everybodys).share_network_id == own
    assert share_on(intake, project, share_type=private).share_network_id == own
    failed = refused(intake, "create_share", "others", "conflict", size=1, share_type=private)
    assert failed.field == "share_type"
    assert own in failed.message
    assert share_on(intake, "others", of_type, share_type=private).share_network_id == of_type
    for values, code in (
        (share_type("nowhere"), "not_found"),
        (share_type(own, driver_mode="single_svm"), "invalid_request"),
    ):
        failed = refused(intake, "create_share_type", "admins", code, admin=True, **values)
        assert failed.field == "extra_specs"


def test_the_configurations_default(intake: Intake, project: str) -> None:
    as_admin(intake, "set_default_share_network", public(intake))
    configured, own = public(intake), intake.network(project)

    def create(network: str | None) -> Any:
        config = intake.config.model_copy(update={"default_share_network_id": network})
        operation = str(uuid.uuid4())
        take_in(config, "create_share", intake.payload(project, size=1), operation)
        (share,) = intake.rows(shares, id=intake.operation(operation).resource_id)
        return share.share_network_id

    assert create(configured) == configured
    for unusable in (own, intake.network("others"), "nowhere"):
        with pytest.raises(Conflict, match="default_share_network_id"):
            create(unusable)
