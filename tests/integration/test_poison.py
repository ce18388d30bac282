"""Messages that no task can be run for, against a real Redis and a real prefork worker."""

from __future__ import annotations

import base64
import functools
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from tests.conftest import StartProcess
from tests.support.services import Process, RedisServer, python, wait_until
from worker.config import BrokerSettings
from worker.messaging.broker import transport_options
from worker.messaging.redis_transport import KEPT_BODY_BYTES

QUEUES = ("first", "second")


def envelope(queue: str, **changes: Any) -> dict[str, Any]:
    """An item of a Redis list as Celery writes it, with changes; ``...`` leaves a field out."""
    body = json.dumps([["sound"], {}, {"callbacks": None, "errbacks": None, "chain": None}])
    document: dict[str, Any] = {
        "body": base64.b64encode(changes.pop("raw_body", body.encode())).decode(),
        "headers": {"task": "good", "id": str(uuid.uuid4()), "lang": "py"},
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "properties": {
            "delivery_tag": str(uuid.uuid4()),
            "delivery_info": {"exchange": "", "routing_key": queue},
            "body_encoding": "base64",
            "priority": 5,
        },
    }
    for path, value in changes.items():
        *sections, name = path.split("__")
        target = document
        for section in sections:
            target = target[section]
        name = name.replace("_type", "-type").replace("_coding", "-encoding")
        if value is ...:
            del target[name]
        else:
            target[name] = value
    return document


def changed(**changes: Any) -> Callable[[str], bytes]:
    return lambda queue: json.dumps(envelope(queue, **changes)).encode()


def literal(item: bytes) -> Callable[[str], bytes]:
    return lambda _queue: item


def body(value: Any) -> Callable[[str], bytes]:
    return changed(raw_body=json.dumps(value).encode())


NO_EMBED: dict[str, Any] = {}
KINDS: dict[str, tuple[Callable[[str], bytes], str]] = {
    # Items of the list that are no message at all.
    "raw text": (literal(b"hello"), "cannot be read as a message"),
    "not UTF-8": (literal(b"\xff\xfe\x00"), "UnicodeDecodeError"),
    "empty": (literal(b""), "cannot be read as a message"),
    "deep": (literal(b"[" * 100_000), "cannot be read as a message"),
    "a number": (literal(b"42"), "envelope"),
    "null": (literal(b"null"), "envelope"),
    "a list": (literal(b"[1, 2]"), "envelope"),
    "a false date": (
        literal(b'{"__type__": "datetime", "__value__": "never"}'),
        "cannot be read as a message",
    ),
    "huge item": (literal(b"x" * 1_000_000), "1000000 bytes"),
    # Envelopes that kombu would stumble over.
    "no properties": (changed(properties=...), "properties"),
    "no delivery tag": (changed(properties__delivery_tag=...), "delivery_tag"),
    "tag is a list": (changed(properties__delivery_tag=[1]), "delivery_tag"),
    "no delivery info": (changed(properties__delivery_info=...), "delivery_info"),
    "no body": (changed(body=...), "body"),
    "body is an object": (changed(body={"a": 1}), "body"),
    "bad base64": (changed(body="abc"), "base64 | Error: "),
    "unknown body encoding": (changed(properties__body_encoding="rot13"), "body_encoding"),
    "no headers": (changed(headers=...), "headers"),
    "headers are null": (changed(headers=None), "headers"),
    "headers are a list": (changed(headers=["task"]), "headers"),
    "compressed": (changed(headers__compression="application/x-gzip"), "compressed"),
    "no content type": (changed(content_type=...), "content-type"),
    # Messages that Celery would stumble over or drop.
    "unknown task": (changed(headers__task="no.such.task"), "no task named 'no.such.task'"),
    "task is a list": (changed(headers__task=["good"]), "task"),
    "no id": (changed(headers__id=...), "id"),
    "retries is text": (changed(headers__retries="many"), "retries"),
    "time limit": (changed(headers__timelimit="soon"), "timelimit"),
    "a false ETA": (changed(headers__eta="tomorrow"), "eta"),
    "an empty ETA": (changed(headers__eta=""), "eta"),
    "a false expiry": (changed(headers__expires="never"), "expires"),
    "an empty expiry": (changed(headers__expires=""), "expires"),
    "beyond the calendar": (changed(headers__expires="9999-12-31T23:59:59-14:00"), "expires"),
    "protocol 1": (
        changed(headers={}, raw_body=json.dumps({"task": "good", "args": ["x"]}).encode()),
        "headers",
    ),
    "protocol 1 junk": (changed(headers={}, raw_body=b'{"task": 1}'), "headers"),
    "bad JSON": (changed(raw_body=b'[["x"], {}, '), "cannot be read"),
    "pickle": (changed(content_type="application/x-python-serialize"), "pickle"),
    "plain text": (changed(content_type="text/plain"), "ContentDisallowed"),
    "data": (changed(content_type="application/data"), "[args, kwargs, embed]"),
    "wrong encoding": (changed(content_coding="utf-16"), "content encoding"),
    "unknown encoding": (changed(content_coding="klingon"), "content encoding"),
    "encoding is a list": (changed(content_coding=["utf-8"]), "content-encoding"),
    "not what it says": (changed(raw_body='[["x"], {}, {}]'.encode("utf-16")), "cannot be read"),
    "empty body": (changed(raw_body=b""), "[args, kwargs, embed]"),
    "body is an object inside": (body({"a": 1}), "[args, kwargs, embed]"),
    "body is text": (body("args"), "[args, kwargs, embed]"),
    "body is null": (body(None), "[args, kwargs, embed]"),
    "two parts": (body([["x"], {}]), "[args, kwargs, embed]"),
    "args is text": (body(["x", {}, NO_EMBED]), "[args, kwargs, embed]"),
    "kwargs is a list": (body([["x"], [], NO_EMBED]), "[args, kwargs, embed]"),
    "embed is null": (body([["x"], {}, None]), "[args, kwargs, embed]"),
    "chain is text": (body([["x"], {}, {"chain": "good"}]), "[args, kwargs, embed]"),
    "half a signature": (body([["x"], {}, {"chain": [{"task": "good"}]}]), "signature"),
    "errbacks are numbers": (body([["x"], {}, {"errbacks": [1]}]), "[args, kwargs, embed]"),
    "an argument missing": (body([[], {}, NO_EMBED]), "do not fit"),
    "an argument too many": (body([["x", "y"], {}, NO_EMBED]), "do not fit"),
    "an unknown keyword": (body([["x"], {"y": 1}, NO_EMBED]), "do not fit"),
    "over 256 KiB": (body([["x" * 262144], {}, NO_EMBED]), "at most 262144"),
    "large headers": (changed(headers__argsrepr="x" * 300_000), "at most 262144"),
}


@dataclass
class Setup:
    """A worker on two queues and what it leaves behind."""

    worker: Process
    redis: RedisServer
    directory: Path
    app: Celery

    def push(self, queue: str, item: bytes) -> None:
        # Kombu's name of a list: the queue, and its priority unless that is 0.
        with self.redis.client() as client:
            client.lpush(f"{queue}\x06\x165", item)

    def keep_dead_letter(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines("quarantine")]

    def has_kept(self, messages: int) -> bool:
        return len(self.keep_dead_letter()) >= messages

    def lines(self, name: str) -> list[str]:
        file = self.directory / name
        return file.read_text().splitlines() if file.exists() else []

    def send_good(self, queue: str) -> None:
        word = str(uuid.uuid4())
        self.app.send_task("good", [word], queue=queue, priority=5)
        wait_until(lambda: word in self.lines("good"), "the good task ran")

    def unacknowledged(self) -> int:
        with self.redis.client() as client:
            return int(client.hlen("unacked"))


@pytest.fixture(params=["tcp", "socket"])
def setup(
    request: pytest.FixtureRequest,
    redis_server: RedisServer,
    start_process: StartProcess,
    tmp_path: Path,
) -> Iterator[Setup]:
    url = redis_server.url() if request.param == "tcp" else redis_server.socket_url()
    worker = start_process(
        python(
            *("celery", "--app", "tests.integration.poison_app", "worker", "--pool", "prefork"),
            *("--concurrency", "2", "--queues", ",".join(QUEUES), "--loglevel", "INFO"),
        ),
        env={"POISON_BROKER": url, "POISON_DIRECTORY": str(tmp_path)},
        ready=" ready.",
    )
    app = Celery("producer", broker=url)
    app.conf.broker_transport_options = transport_options(BrokerSettings(url=url))
    yield Setup(worker, redis_server, tmp_path, app)
    app.close()


def test_every_kind_is_kept_and_the_worker_lives(setup: Setup) -> None:
    pid, children = setup.worker.pid, setup.worker.children()
    for kind, (item, reason) in KINDS.items():
        for queue in QUEUES:
            before = len(setup.keep_dead_letter())
            setup.push(queue, item(queue))
            setup.send_good(queue)
            wait_until(functools.partial(setup.has_kept, before + 1), f"{kind} is kept")
            (kept,) = setup.keep_dead_letter()[before:]
            assert any(part in kept["reason"] for part in reason.split(" | ")), (kind, kept)
            assert kept["queue"] == queue, (kind, kept)
            assert len(kept["body"]) <= 4 * KEPT_BODY_BYTES, kind
    assert setup.worker.running
    assert (setup.worker.pid, setup.worker.children()) == (pid, children)
    wait_until(lambda: setup.unacknowledged() == 0, "everything is acknowledged")
    fingerprints = [kept["fingerprint"] for kept in setup.keep_dead_letter()]
    assert len(fingerprints) == len(QUEUES) * len(KINDS)


def test_a_broken_quarantine_loses_nothing(setup: Setup) -> None:
    (setup.directory / "broken").touch()
    setup.push("first", b"hello")
    wait_until(lambda: "could not be set aside" in setup.worker.output(), "it was tried")
    assert setup.unacknowledged() == 1
    setup.send_good("first")
    setup.send_good("second")
    (setup.directory / "broken").unlink()
    wait_until(lambda: len(setup.keep_dead_letter()) > 0, "it is kept in the end")
    wait_until(lambda: setup.unacknowledged() == 0, "it is acknowledged")
    assert len({kept["fingerprint"] for kept in setup.keep_dead_letter()}) == 1


def test_a_killed_worker_leaves_poison_to_the_next(
    setup: Setup, start_process: StartProcess
) -> None:
    (setup.directory / "broken").touch()
    setup.push("second", b"hello")
    wait_until(lambda: setup.unacknowledged() == 1, "the worker has it")
    setup.worker.kill()
    setup.worker.close()
    (setup.directory / "broken").unlink()
    start_process(setup.worker.command, env=setup.worker.env, ready=" ready.")
    wait_until(lambda: len(setup.keep_dead_letter()) > 0, "the next worker keeps it")
    (kept,) = setup.keep_dead_letter()
    assert (kept["queue"], kept["body"], kept["size"]) == ("second", "hello", 5)
    wait_until(lambda: setup.unacknowledged() == 0, "it is acknowledged")
