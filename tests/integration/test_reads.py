"""Reads have a queue and a process of their own, and answers that soon expire."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Iterator
from typing import Final

import pytest

from scheduler.client import Client, NotHeard
from tests.support.deployment import FAKE_BACKEND, Deployment
from tests.support.pace import limit
from tests.support.services import RedisServer
from worker.errors import RequestFailed

EXPIRES: Final = 40


@pytest.fixture(scope="module")
def deployment(
    tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer
) -> Iterator[Deployment]:
    """A deployment with a process for changes and one for reads."""
    directory = tmp_path_factory.mktemp("reads")
    with shared_redis.client() as client:
        client.flushall()
    made = Deployment(
        directory, f"sqlite:///{directory / 'sw.db'}", shared_redis, settings=FAKE_BACKEND
    )
    short = {"SHAREWRIGHT_BROKER__READ_RESULT_EXPIRES": str(EXPIRES)}
    try:
        made.role("scheduler", "--requests", "changes", name="changes", **short)
        made.role("scheduler", "--requests", "reads", name="reads", **short)
        yield made
    finally:
        made.close()


def lifetime(deployment: Deployment, request_id: str) -> int:
    with deployment.redis.client(1) as results:
        return int(results.ttl(f"celery-task-meta-{request_id}"))


def create_network(deployment: Deployment) -> str:
    payload = deployment.payload(flat_network_ip_pool=["10.0.0.0/24"])
    return deployment.client.submit("create_share_network", payload, timeout=limit())


def test_neither_waits_for_the_other(deployment: Deployment) -> None:
    client, payload = deployment.client, deployment.payload()
    create_network(deployment)
    for stopped, other in (("changes", "reads"), ("reads", "changes")):
        deployment.processes[stopped].signal(signal.SIGSTOP)
        try:
            if other == "reads":
                assert "shares" in client.read("list_shares", payload, timeout=limit())
                with pytest.raises(NotHeard):
                    client.submit("create_share", deployment.payload(size=1), timeout=1)
            else:
                create_network(deployment)
                with pytest.raises(NotHeard):
                    client.submit("list_shares", payload, timeout=1)
        finally:
            deployment.processes[stopped].signal(signal.SIGCONT)


def test_an_answer_expires_soon_and_a_result_does_not(deployment: Deployment) -> None:
    client = deployment.client
    read = client.submit("list_shares", deployment.payload())
    assert 0 < lifetime(deployment, read) <= EXPIRES
    refused = str(uuid.uuid4())
    with pytest.raises(RequestFailed):
        client.submit("show_share", deployment.payload(share_id="none"), operation_id=refused)
    assert 0 < lifetime(deployment, refused) <= EXPIRES
    changed = create_network(deployment)
    client.result(changed, timeout=limit())
    assert lifetime(deployment, changed) > EXPIRES


def test_the_client_deletes_what_it_has_read(deployment: Deployment) -> None:
    with deployment.redis.client(1) as results:
        before = set(results.keys("celery-task-meta-*"))
        deployment.client.read("list_shares", deployment.payload())
        assert set(results.keys("celery-task-meta-*")) <= before


def test_reads_are_taken_from_the_common_queue_too(deployment: Deployment) -> None:
    """Where producers of version 0.1.0 send them."""
    app = deployment.client._app
    sent = app.send_task(
        "sharewright.request.list_shares", (deployment.payload(),), queue="requests"
    )
    assert sent.get(timeout=limit()) == {"shares": [], "next_marker": None}


def test_the_client_s_second_try_goes_where_every_scheduler_reads(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As beside schedulers of version 0.1.0, which do not know the queue of reads."""
    monkeypatch.setattr("scheduler.client.RESEND_SECONDS", 0.5)
    deployment.processes["reads"].signal(signal.SIGSTOP)
    client = Client(deployment.redis.url(), deployment.redis.url(1))
    try:
        assert "shares" in client.read("list_shares", deployment.payload(), timeout=limit())
    finally:
        deployment.processes["reads"].signal(signal.SIGCONT)
        client.close()
