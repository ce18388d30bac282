"""What goes over the wire: one message a request and one a step, none joined, none twice."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support.fakes import Fakes
from tests.support.pace import limit
from tests.support.services import RedisServer, wait_until


class Wire:
    """Every task message that is put on a queue, by Redis' own word."""

    def __init__(self, server: RedisServer) -> None:
        self.tasks: list[tuple[str, str]] = []
        # Nothing may be said for longer than redis-py waits by default.
        self._client = redis.Redis(host="127.0.0.1", port=server.port, socket_timeout=None)
        self._monitor = self._client.monitor()
        self._monitor.__enter__()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(redis.ConnectionError):  # the server ends before this does
            for command in self._monitor.listen():
                verb, _, rest = command["command"].partition(" ")
                key, _, message = rest.partition(" ")
                if verb == "LPUSH" and key.startswith(("requests", "steps.")):
                    headers = json.loads(message[message.index("{") :])["headers"]
                    self.tasks.append((headers["root_id"], headers["task"]))

    def of(self, operation_id: str) -> list[str]:
        """The tasks that were sent for an operation, in order."""
        return [task for root, task in list(self.tasks) if root == operation_id]


@pytest.fixture
def fakes(tmp_path: Path, database_url: str, redis_server: RedisServer) -> Iterator[Fakes]:
    # Nothing is taken for lost however slow the machine is.
    deployment = Fakes(tmp_path, database_url, redis_server, engine={"lease": 60.0})
    try:
        yield deployment.start()
    finally:
        deployment.close()


def test_an_operation_is_one_request_message_and_one_message_a_step(
    fakes: Fakes, redis_server: RedisServer
) -> None:
    network = fakes.network()
    wire = Wire(redis_server)
    create = [
        "sharewright.request.create_share",
        "sharewright.allocate_network",
        "sharewright.get_share_server",
        "sharewright.create_share",
    ]
    first = fakes.create(network)
    fakes.client.result(first, timeout=limit())
    # The next one joins the server: its steps have less to do, and are messages all the same.
    second = fakes.create(network)
    share = fakes.client.result(second, timeout=limit())
    payload = fakes.payload(share_id=share["id"])
    third = fakes.client.submit("delete_share", payload)
    fakes.client.result(third, timeout=limit())
    fakes.settle()
    delete = ["sharewright.request.delete_share", "sharewright.delete_share"]
    wait_until(lambda: wire.of(third) == delete, "the monitor has seen the last message")
    assert wire.of(first) == create
    assert wire.of(second) == create
