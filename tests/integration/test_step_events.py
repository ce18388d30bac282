"""What Celery's events, and so Flower, tell of steps."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from celery import Celery

from tests.support.fakes import Fakes
from tests.support.services import RedisServer, wait_until


def test_a_step_that_failed_does_not_look_like_a_success(
    tmp_path: Path, sqlite_url: str, redis_server: RedisServer
) -> None:
    """Each attempt that failed is one, with its reason; only the operation's result is stored."""
    deployment = Fakes(tmp_path, sqlite_url, redis_server)
    seen: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    reasons: list[str] = []

    def on_event(event: dict[str, Any]) -> None:
        if event["type"] == "task-received":
            names[event["uuid"]] = event["name"]
        elif event["type"] in {"task-succeeded", "task-failed"}:
            name = names.get(event["uuid"], "")
            seen.setdefault(name, []).append(event["type"])
            reasons.append(event.get("exception", ""))

    app = Celery(broker=redis_server.url(), set_as_current=False)
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": on_event})
        listener = threading.Thread(
            target=lambda: receiver.capture(limit=None, timeout=None, wakeup=False), daemon=True
        )
        listener.start()
        try:
            deployment.start()
            network = deployment.network()
            deployment.world.arm("allocate_network", "retryable")
            deployment.world.arm("create_share", "fatal")
            failed = deployment.create(network)
            assert deployment.failure(failed).code == "storage_failed"
            deployment.settle()
            wait_until(lambda: "sharewright.deallocate_network" in seen, "all events are here", 60)
        finally:
            receiver.should_stop = True
            listener.join(30)
            deployment.close()
    assert seen["sharewright.allocate_network"] == ["task-failed", "task-succeeded"]
    assert seen["sharewright.create_share"] == ["task-failed"]
    assert seen["sharewright.delete_share"] == ["task-succeeded"]
    assert any("let allocate_network end as retryable" in reason for reason in reasons)
