"""What an object's state, users and capacity allow, seen by the intake."""

from __future__ import annotations

import multiprocessing
import uuid
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
from sqlalchemy import insert

from tests.support.intake import SMALL_GIB, Intake, take_in
from tests.support.pace import limit
from worker.db.core.engine import db_now, transaction
from worker.db.tables.main import (
    operations,
    share_servers,
    share_types,
    shares,
    snapshots,
    storage_pools,
)
from worker.errors import SharewrightError

FORK = multiprocessing.get_context("fork")


# One live operation an object; what is queued behind it.


def test_what_is_queued_has_a_limit(intake: Intake, project: str) -> None:
    share = intake.share(project)
    for number in range(4):
        intake.accepted("allow_access", project, share_id=share, access_to=f"10.0.0.{number + 1}")
    states = [row.state for row in intake.rows(operations, resource_id=share, verb="allow_access")]
    assert sorted(states) == ["pending", "pending", "pending", "running"]
    failed = intake.refusal(
        "allow_access", intake.payload(project, share_id=share, access_to="10.0.0.9")
    )
    assert failed.code == "too_many_queued"
    assert share in failed.object


def test_a_delete_overtakes_what_is_queued(intake: Intake, project: str) -> None:
    share = intake.share(project)
    ids = [
        intake.accepted("allow_access", project, share_id=share, access_to=f"10.0.0.{number}")
        for number in (1, 2, 3)
    ]
    keyed = intake.payload(project, share_id=share, new_size=5, idempotency_key="k")
    ids.append(intake.client.submit("extend_share", keyed))
    alias = intake.client.submit("extend_share", keyed)
    deleting = intake.accepted("delete_share", project, share_id=share)
    for request_id in (*ids[1:], alias):
        failed = intake.outcome(request_id)
        assert (failed.code, failed.object) == ("superseded", f"share {share}")
    states = [intake.operation(one).state for one in (*ids, deleting)]
    assert states == ["running", *["superseded"] * 3, "pending"]
    assert intake.rows(shares, id=share)[0].status == "deleting"
    again = intake.refusal("delete_share", intake.payload(project, share_id=share))
    assert again.code == "conflict"


def test_a_delete_cancels_a_create(intake: Intake, project: str) -> None:
    created = intake.accepted(
        "create_share", project, size=1, share_network_id=intake.network(project)
    )
    share = intake.operation(created).resource_id
    deleting = intake.accepted("delete_share", project, share_id=share)
    assert intake.operation(created).cancel_reason["code"] == "cancelled"
    assert intake.operation(deleting).state == "pending"
    assert intake.rows(shares, id=share)[0].status == "deleting"


def _snapshot(intake: Intake, project: str, share: str, status: str = "available") -> str:
    snapshot = str(uuid.uuid4())
    with transaction(intake.engine) as connection:
        connection.execute(
            insert(snapshots).values(
                id=snapshot,
                project_id=project,
                metadata={},
                share_id=share,
                size=1,
                status=status,
                created_at=db_now(),
                updated_at=db_now(),
            )
        )
    return snapshot


@pytest.mark.parametrize("status", ["creating", "available", "error"])
def test_a_share_with_snapshots_is_not_deleted(intake: Intake, project: str, status: str) -> None:
    share = intake.share(project)
    _snapshot(intake, project, share, status)
    failed = intake.refusal("delete_share", intake.payload(project, share_id=share))
    assert failed.code == "conflict"
    assert "1 snapshot" in failed.message
    assert intake.rows(shares, id=share)[0].status == "available"


def test_a_snapshot_that_is_being_copied_is_not_deleted(intake: Intake, project: str) -> None:
    share = intake.share(project)
    snapshot = _snapshot(intake, project, share)
    copy = intake.accepted("create_share", project, size=1, snapshot_id=snapshot)
    failed = intake.refusal("delete_snapshot", intake.payload(project, snapshot_id=snapshot))
    assert (failed.code, failed.object) == ("conflict", f"snapshot {snapshot}")
    made = intake.rows(shares, id=intake.operation(copy).resource_id)[0]
    assert made.share_network_id == intake.rows(shares, id=share)[0].share_network_id
    intake.set(shares, made.id, status="available")
    intake.accepted("delete_snapshot", project, snapshot_id=snapshot)


def test_a_copy_is_at_least_as_large_as_its_snapshot(intake: Intake, project: str) -> None:
    share = intake.share(project, size=3)
    snapshot = _snapshot(intake, project, share)
    intake.set(snapshots, snapshot, size=3)
    failed = intake.refusal("create_share", intake.payload(project, size=2, snapshot_id=snapshot))
    assert (failed.code, failed.field) == ("invalid_request", "size")


@pytest.mark.parametrize("new_size", [1, 3])
def test_a_share_is_not_extended_to_less(intake: Intake, project: str, new_size: int) -> None:
    share = intake.share(project, size=3)
    failed = intake.refusal(
        "extend_share", intake.payload(project, share_id=share, new_size=new_size)
    )
    assert (failed.code, failed.field) == ("invalid_request", "new_size")


@pytest.mark.parametrize("status", ["creating", "deleting", "error", "error_deleting"])
def test_a_share_in_another_status_takes_no_change(
    intake: Intake, project: str, status: str
) -> None:
    share = intake.share(project, status=status)
    for verb, fields in (
        ("extend_share", {"new_size": 5}),
        ("create_snapshot", {}),
        ("allow_access", {"access_to": "10.0.0.1"}),
    ):
        failed = intake.refusal(verb, intake.payload(project, share_id=share, **fields))
        assert failed.code == "conflict", verb
        assert status in failed.message


def test_a_client_has_one_rule(intake: Intake, project: str) -> None:
    share = intake.share(project)
    intake.accepted("allow_access", project, share_id=share, access_to="10.0.0.7")
    failed = intake.refusal(
        "allow_access", intake.payload(project, share_id=share, access_to="10.0.0.7/32")
    )
    assert (failed.code, failed.field) == ("conflict", "access_to")


def test_a_network_in_use_names_up_to_five_users(intake: Intake, project: str) -> None:
    network = intake.network(project)
    refuse = intake.payload(project, share_network_id=network)
    made = [
        intake.operation(
            intake.accepted("create_share", project, size=1, share_network_id=network)
        ).resource_id
        for _ in range(2)
    ]
    failed = intake.refusal("delete_share_network", refuse)
    assert failed.code == "conflict"
    assert all(f"share {share}" in failed.message for share in made)
    made += [
        intake.operation(
            intake.accepted("create_share", project, size=1, share_network_id=network)
        ).resource_id
        for _ in range(5)
    ]
    message = intake.refusal("delete_share_network", refuse).message
    assert sum(f"share {share}" in message for share in made) == 5
    assert "and 9 more" in message  # two other shares, and a reference of each operation


def test_a_network_whose_server_is_left_is_not_deleted(intake: Intake, project: str) -> None:
    network = intake.network(project)
    server = str(uuid.uuid4())
    with transaction(intake.engine) as connection:
        connection.execute(
            insert(share_servers).values(
                id=server,
                project_id=project,
                share_network_id=network,
                backend="fake",
                status="deleting",
                builder_id="o",
                created_at=db_now(),
                updated_at=db_now(),
            )
        )
    failed = intake.refusal(
        "delete_share_network", intake.payload(project, share_network_id=network)
    )
    assert f"share server {server}" in failed.message


# Administrators.


def test_share_types_by_an_administrator(intake: Intake, project: str) -> None:
    made = intake.ask("create_share_type", project=project, admin=True, name=project)
    assert made["name"] == project
    failed = intake.refusal("create_share_type", intake.payload(project, name=project), admin=True)
    assert (failed.code, failed.field) == ("conflict", "name")
    intake.ask("delete_share_type", project=project, admin=True, share_type=project)
    assert not intake.rows(share_types, name=project)


def test_a_disabled_backend_takes_nothing(intake: Intake, project: str) -> None:
    network = intake.network(project)
    asked = intake.payload(project, size=SMALL_GIB + 1, share_network_id=network)
    intake.ask("disable_backend", admin=True, backend="fake", reason="maintenance")
    try:
        failed = intake.refusal("create_share", asked)
    finally:
        intake.ask("enable_backend", admin=True, backend="fake")
    assert failed.code == "no_valid_backend"
    assert "fake#pool: the backend is disabled" in failed.message
    assert intake.client.submit("create_share", asked)


# Capacity.


def test_capacity_is_never_oversubscribed(intake: Intake, project: str) -> None:
    asked = intake.payload(project, size=3)
    with ProcessPoolExecutor(8, mp_context=FORK) as processes:
        jobs = [
            processes.submit(_try, intake.config, "create_share", asked, str(uuid.uuid4()))
            for _ in range(24)
        ]
        answers = [job.result(timeout=limit()) for job in jobs]
    made = intake.rows(shares, project_id=project)
    pool = intake.rows(storage_pools, backend="small")[0]
    assert len(made) == SMALL_GIB // 3
    assert pool.allocated_gib == sum(share.allocated_gib for share in made) == 18
    assert pool.shares == len(made)
    refused = [answer for answer in answers if "code" in answer]
    assert len(refused) == 24 - len(made)
    assert {answer["code"] for answer in refused} == {"no_valid_backend"}


def _try(config: Any, verb: str, asked: dict[str, Any], operation_id: str) -> Any:
    try:
        return take_in(config, verb, asked, operation_id)
    except SharewrightError as error:
        return error.to_json()
