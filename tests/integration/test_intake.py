"""Requests at the edge: refused without a trace, accepted once, never oversubscribed."""

from __future__ import annotations

import json
import multiprocessing
import uuid
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

from tests.support.intake import Intake, add_network, take_in
from tests.support.pace import limit
from worker.db.tables.main import operation_aliases, operations, share_networks
from worker.errors import RequestFailed, SharewrightError

FORK = multiprocessing.get_context("fork")


# Refused, with no row left.


@pytest.mark.parametrize(
    ("verb", "fields", "code", "field"),
    [
        ("create_share", {"size": 1, "colour": "blue"}, "invalid_request", "colour"),
        ("create_share", {}, "invalid_request", "size"),
        ("create_share", {"size": 0}, "invalid_request", "size"),
        ("create_share", {"size": -5}, "invalid_request", "size"),
        ("create_share", {"size": 2**31}, "invalid_request", "size"),
        ("create_share", {"size": 10**30}, "invalid_request", "size"),
        ("create_share", {"size": 1001}, "invalid_request", "size"),
        ("create_share", {"size": 1.5}, "invalid_request", "size"),
        ("create_share", {"size": 1, "name": "a\0b"}, "invalid_request", "name"),
        ("create_share", {"size": 1, "share_type": "nowhere"}, "not_found", "share_type"),
        ("create_share", {"size": 1, "share_network_id": "nowhere"}, "not_found", None),
        ("create_share", {"size": 1, "snapshot_id": "nowhere"}, "not_found", "snapshot_id"),
        ("delete_share", {"share_id": "nowhere"}, "not_found", "share_id"),
        ("extend_share", {"share_id": "nowhere", "new_size": 2}, "not_found", "share_id"),
        ("extend_share", {"share_id": "s", "new_size": 0}, "invalid_request", "new_size"),
        ("create_snapshot", {"share_id": "nowhere"}, "not_found", "share_id"),
        (
            "allow_access",
            {"share_id": "s", "access_to": "10.0.0.0/33"},
            "invalid_request",
            "access_to",
        ),
        (
            "create_share_network",
            {"flat_network_ip_pool": ["10.0.0.0/33"]},
            "invalid_request",
            "flat_network_ip_pool",
        ),
        (
            "create_share_network",
            {"flat_network_ip_pool": ["10.0.0.0/24"], "flat_network_gateway": "10.0.1.1"},
            "invalid_request",
            "flat_network_gateway",
        ),
        (
            "create_share_network",
            {"flat_network_gateway": "10.0.1.1"},
            "invalid_request",
            "flat_network_gateway",
        ),
        ("delete_share_network", {"share_network_id": "nowhere"}, "not_found", None),
        ("create_share_type", {"name": "gold"}, "forbidden", ""),
        ("disable_backend", {"backend": "fake"}, "forbidden", ""),
        ("list_backends", {}, "forbidden", ""),
    ],
)
def test_refused(  # noqa: PLR0917 - pytest's own way of giving parameters
    intake: Intake, project: str, verb: str, fields: dict[str, Any], code: str, field: str | None
) -> None:
    failed = intake.refusal(verb, intake.payload(project, **fields))
    assert failed.code == code
    assert failed.field == ("share_network_id" if field is None else field)
    assert not failed.field or f"(field {failed.field})" in str(failed)
    if code == "not_found":
        assert "nowhere" in failed.message
        assert failed.object.endswith("nowhere")


def test_refused_when_it_is_no_object(intake: Intake) -> None:
    request_id = str(uuid.uuid4())
    before = intake.counts()
    intake.client._app.send_task(
        "sharewright.request.create_share", args=("nonsense",), task_id=request_id, queue="requests"
    )
    failed = intake.outcome(request_id)
    assert "one JSON object" in failed.message
    assert failed.code == "invalid_request"
    assert intake.counts() == before


@pytest.mark.parametrize("bad", ["x" * 65, "has space", "nul\0"])
def test_an_id_that_no_operation_can_have(intake: Intake, project: str, bad: str) -> None:
    before = intake.counts()
    failed = intake.outcome(
        intake.send("create_share", intake.payload(project, size=1), operation_id=bad)
    )
    assert (failed.code, failed.field) == ("invalid_request", "id")
    assert intake.counts() == before


def test_another_projects_objects_are_not_found(intake: Intake, project: str) -> None:
    share = intake.share(project)
    network = intake.rows(share_networks, project_id=project)[0].id
    for verb, fields, field in (
        ("create_share", {"size": 1, "share_network_id": network}, "share_network_id"),
        ("delete_share_network", {"share_network_id": network}, "share_network_id"),
        ("delete_share", {"share_id": share}, "share_id"),
        ("extend_share", {"share_id": share, "new_size": 9}, "share_id"),
        ("allow_access", {"share_id": share, "access_to": "10.0.0.1"}, "share_id"),
        ("create_snapshot", {"share_id": share}, "share_id"),
        ("show_share", {"share_id": share}, "share_id"),
    ):
        failed = intake.refusal(verb, intake.payload("somebody-else", **fields))
        assert (failed.code, failed.field) == ("not_found", field), verb


def test_a_queue_that_a_message_claims_to_come_from_is_not_believed(
    intake: Intake, project: str
) -> None:
    request_id = str(uuid.uuid4())
    app = intake.client._app
    app.send_task(
        "sharewright.request.create_share_type",
        args=(intake.payload(project, name=f"forged-{project[:40]}"),),
        task_id=request_id,
        queue="forgery",
    )
    with intake.redis.client() as client:
        message = json.loads(client.rpop("forgery"))  # type: ignore[arg-type] # redis-py: bytes
        info = message["properties"]["delivery_info"]
        info.update(exchange="", routing_key="requests.admin")
        client.lpush("requests", json.dumps(message))
    failed = intake.outcome(request_id)
    assert isinstance(failed, RequestFailed)
    assert failed.code == "forbidden"


def test_a_backend_that_nobody_configured_is_not_chosen(intake: Intake, project: str) -> None:
    intake.report(f"gone-{project[-8:]}", "single_svm", 900)
    failed = intake.refusal("create_share", intake.payload(project, size=500))
    assert failed.code == "no_valid_backend"
    assert "gone-" not in failed.message
    assert "taken by other requests" not in failed.message
    assert "fake#pool: its mode is flat_multi_svm" in failed.message


# Sent again.


def test_the_same_id_again_changes_nothing(intake: Intake, project: str) -> None:
    asked = intake.payload(project, flat_network_ip_pool=["10.0.0.0/24"])
    request_id = intake.send("create_share_network", asked)
    made = intake.outcome(request_id)
    before = intake.counts()
    for _ in range(3):
        intake.client._app.AsyncResult(request_id).forget()
        intake.send("create_share_network", asked, operation_id=request_id)
        assert intake.outcome(request_id) == made
    assert intake.counts() == before


def test_the_same_id_while_it_runs_changes_nothing(intake: Intake, project: str) -> None:
    asked = intake.payload(project, size=1, share_network_id=intake.network(project))
    request_id = intake.client.submit("create_share", asked)
    before = intake.counts()
    assert intake.client.submit("create_share", asked, operation_id=request_id) == request_id
    intake.idle()
    assert intake.counts() == before
    assert intake.operation(request_id).dispatch == 1


def test_the_id_of_another_project_is_dropped(intake: Intake, project: str) -> None:
    asked = intake.payload(project, name="mine")
    request_id = intake.send("create_share_network", asked)
    made = intake.outcome(request_id)
    before = intake.counts()
    for verb, payload in (
        ("create_share_network", intake.payload("thief", name="mine")),
        ("create_share_network", {"version": 1}),
        ("show_share", intake.payload("thief", share_id="nowhere")),
        ("list_shares", intake.payload("thief")),
        ("create_share_type", intake.payload("thief", name="gold")),
    ):
        intake.send(verb, payload, operation_id=request_id)
    intake.idle()
    assert intake.outcome(request_id) == made
    assert intake.counts() == before
    log = intake.processes["scheduler"].output()
    assert f"under the id {request_id}, which belongs to another project" in log


def test_another_request_under_a_used_id_is_dropped(intake: Intake, project: str) -> None:
    request_id = intake.send("create_share_network", intake.payload(project, name="first"))
    made = intake.outcome(request_id)
    before = intake.counts()
    intake.send(
        "create_share_network", intake.payload(project, name="second"), operation_id=request_id
    )
    intake.idle()
    assert intake.outcome(request_id) == made
    assert intake.counts() == before


# The idempotency key.


def test_a_key_gives_the_same_operations_result(intake: Intake, project: str) -> None:
    asked = intake.payload(project, name="n", idempotency_key="k1")
    made = intake.outcome(intake.send("create_share_network", asked))
    again = intake.outcome(intake.send("create_share_network", asked))
    assert again == made
    assert len(intake.rows(share_networks, project_id=project)) == 1


def test_a_key_of_another_project_is_another_key(intake: Intake, project: str) -> None:
    one = intake.outcome(
        intake.send("create_share_network", intake.payload(project, idempotency_key="k1"))
    )
    other = intake.outcome(
        intake.send("create_share_network", intake.payload(project + "x", idempotency_key="k1"))
    )
    assert one["id"] != other["id"]


def test_a_key_with_another_payload_is_refused(intake: Intake, project: str) -> None:
    first = intake.send(
        "create_share_network", intake.payload(project, name="n", idempotency_key="k1")
    )
    intake.outcome(first)
    failed = intake.refusal(
        "create_share_network", intake.payload(project, name="m", idempotency_key="k1")
    )
    assert (failed.code, failed.field) == ("idempotency_mismatch", "idempotency_key")
    assert first in failed.object
    failed = intake.refusal("create_share", intake.payload(project, size=1, idempotency_key="k1"))
    assert failed.code == "idempotency_mismatch"


def test_an_id_that_a_key_gave_to_an_operation_is_taken(intake: Intake, project: str) -> None:
    asked = intake.payload(
        project, size=1, share_network_id=intake.network(project), idempotency_key="k1"
    )
    first = intake.client.submit("create_share", asked)
    alias = intake.client.submit("create_share", asked)
    assert [row.operation_id for row in intake.rows(operation_aliases, id=alias)] == [first]
    before = intake.counts()
    intake.send("create_share_network", intake.payload("thief"), operation_id=alias)
    intake.send("list_shares", intake.payload("thief"), operation_id=alias)
    intake.idle()
    assert intake.counts() == before
    assert intake.client._app.AsyncResult(alias).state == "ACCEPTED"


def _race(intake: Intake, verb: str, asked: dict[str, Any], number: int = 8) -> list[Any]:
    """The same request under ids of their own, in as many processes at once."""
    config = intake.config
    barrier = FORK.Barrier(number)
    with ProcessPoolExecutor(
        number, mp_context=FORK, initializer=_meet_at, initargs=(barrier,)
    ) as pool:
        jobs = [
            pool.submit(_at_once, config, verb, asked, str(uuid.uuid4())) for _ in range(number)
        ]
        return [job.result(timeout=limit()) for job in jobs]


def _meet_at(barrier: Any) -> None:
    globals()["_barrier"] = barrier


def _at_once(config: Any, verb: str, asked: dict[str, Any], operation_id: str) -> Any:
    globals()["_barrier"].wait(limit())
    try:
        return take_in(config, verb, asked, operation_id)
    except SharewrightError as error:
        return error.to_json()


RACES: list[tuple[str, Callable[[Intake, str], dict[str, Any]]]] = [
    (
        "create_share",
        lambda intake, project: {
            "size": 1,
            "share_network_id": add_network(intake.database_url, project),
        },
    ),
    ("create_share_type", lambda _intake, project: {"name": project}),
    ("create_snapshot", lambda intake, project: {"share_id": intake.share(project)}),
    ("delete_share", lambda intake, project: {"share_id": intake.share(project)}),
    (
        "delete_share_network",
        lambda intake, project: {"share_network_id": add_network(intake.database_url, project)},
    ),
]


@pytest.mark.parametrize(("verb", "fields"), RACES, ids=[verb for verb, _ in RACES])
def test_one_key_in_8_processes_at_once_is_one_operation(
    intake: Intake,
    project: str,
    verb: str,
    fields: Callable[[Intake, str], dict[str, Any]],
) -> None:
    asked = intake.payload(project, idempotency_key="once", **fields(intake, project))
    answers = _race(intake, verb, asked)
    refused = [answer for answer in answers if "code" in answer]
    assert not refused
    assert len(intake.rows(operations, project_id=project, idempotency_key="once")) == 1
    operation = intake.rows(operations, project_id=project, idempotency_key="once")[0]
    assert len(intake.rows(operation_aliases, operation_id=operation.id)) == 7
