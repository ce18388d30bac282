"""The two sides that are compared: bare Celery's chain, and the engine on its fakes.

Each has a PostgreSQL and a Redis of its own, so that the books of one hold nothing of the other.
A batch is published at once, and has ended when every result is stored.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from celery import Celery

from benchmarks.bed import Bed, cpu_seconds
from benchmarks.raw_worker import TABLE, make_raw_app, raw_chain
from tests.support.deployment import Deployment
from tests.support.services import PostgresServer, Process, RedisServer, python, wait_until
from worker.config import load
from worker.db.core.engine import engine_for, transaction

SETTLE_SECONDS: Final = 0.3
"""After the last result: its message is acknowledged, its event sent."""
RESULT_PREFIX: Final = "celery-task-meta-"

FAKES: Final = """
[log]
level = "WARNING"
[backends.fake]
mode = "flat_multi_svm"
share_driver = "fake"
compute_helper = "fake"
network_helpers = ["fake"]
share_network_addresses = true
driver.log_calls = false
compute.log_calls = false
network.fake.log_calls = false
"""
SINGLE: Final = """
[backends.single]
mode = "single_svm"
share_driver = "fake"
driver.log_calls = false
"""

Publish = Callable[[str], None]
"""Sends what begins one chain or operation, under an id."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one operation of a batch took."""

    worker_ms: float
    """CPU of all Python processes that serve it: intake, steps, reconciler."""
    database_ms: float
    broker_ms: float
    per_second: float
    results: tuple[dict[str, Any], ...]

    @property
    def total_ms(self) -> float:
        """CPU of workers, PostgreSQL and Redis."""
        return self.worker_ms + self.database_ms + self.broker_ms


@dataclass(slots=True)
class Side:
    """Services, the processes that serve, and how to ask for something."""

    redis: RedisServer
    postgres: PostgresServer
    processes: dict[str, Process]

    def batch(self, publishers: Sequence[Publish]) -> Cost:
        """Publish all, wait until all have ended, and book what it took."""
        count = len(publishers)
        with self.redis.client(1) as results:
            results.flushdb()
            pids = [process.pid for process in self.processes.values()]
            before = [cpu_seconds(p) for p in (pids, [self.postgres.pid], [self.redis.pid])]
            began = time.perf_counter()
            keys = []
            for publish in publishers:
                operation_id = str(uuid.uuid4())
                publish(operation_id)
                keys.append(RESULT_PREFIX + operation_id)

            def ended() -> bool:
                # The size is asked for first: it costs Redis nothing, whose books are kept here.
                return int(results.dbsize()) >= count and int(results.exists(*keys)) == count

            wait_until(ended, f"{count} results")
            took = time.perf_counter() - began
            time.sleep(SETTLE_SECONDS)
            after = [cpu_seconds(p) for p in (pids, [self.postgres.pid], [self.redis.pid])]
            answers = [json.loads(text) for text in results.mget(keys)]
        failed = [answer for answer in answers if answer["status"] != "SUCCESS"]
        assert not failed, f"{len(failed)} of {count} failed: {failed[0]}"
        worker, database, broker = (
            (b - a) / count * 1000.0 for a, b in zip(before, after, strict=True)
        )
        objects = tuple(answer["result"] for answer in answers)
        return Cost(worker, database, broker, count / took, objects)

    def latencies(self, publishers: Sequence[Publish]) -> list[float]:
        """Milliseconds from publishing to the stored result, one at a time."""
        found = []
        with self.redis.client(1) as results, results.pubsub() as channel:
            for publish in publishers:
                operation_id = str(uuid.uuid4())
                channel.subscribe(RESULT_PREFIX + operation_id)
                channel.get_message(timeout=5)  # that it is subscribed
                began = time.perf_counter()
                publish(operation_id)
                message = channel.get_message(timeout=30)
                found.append((time.perf_counter() - began) * 1000.0)
                assert message is not None, f"{operation_id} has no result"
                assert json.loads(message["data"])["status"] == "SUCCESS", message
                channel.unsubscribe(RESULT_PREFIX + operation_id)
                channel.get_message(timeout=5)
        return found


class Raw:
    """Bare Celery's chain; with its own intake it takes one message more."""

    def __init__(self, bed: Bed) -> None:
        redis, postgres = bed.redis(), bed.postgres()
        url = postgres.url(postgres.create_database())
        with transaction(engine_for(url)) as connection:
            connection.exec_driver_sql(TABLE)
        engine_for(url).dispose()
        directory = bed.directory()
        path = directory / "sharewright.toml"
        path.write_text(
            f'[database]\nurl = "{url}"\n[log]\nlevel = "WARNING"\n'
            f'[broker]\nurl = "{redis.url()}"\nresult_backend = "{redis.url(1)}"\n'
        )
        self._bed, self._directory = bed, directory
        self.side = Side(redis, postgres, {})
        self._start("intake", "--intake")
        self.start_worker(2)
        self._app: Celery = make_raw_app(load(path))
        bed.ends_with(self._app.close)

    def start_worker(self, concurrency: int) -> None:
        """Start the steps' worker, instead of the one before; the next batch waits for it."""
        self._start("worker", "--concurrency", str(concurrency))

    def _start(self, name: str, *arguments: str) -> None:
        before = self.side.processes.get(name)
        if before is not None:
            before.close()  # idle: there is nothing to finish, and a warm stop takes seconds
        process = Process(
            python("benchmarks.raw_worker", *arguments),
            log=self._directory / f"{name}.log",
            env={"SHAREWRIGHT_CONFIG": str(self._directory / "sharewright.toml")},
        )
        self._bed.ends_with(process.close)
        self.side.processes[name] = process.start()

    def publish(self, chain_id: str) -> None:
        """Begin a chain directly."""
        raw_chain(self._app, chain_id).apply_async()

    def publish_by_intake(self, chain_id: str) -> None:
        """Begin a chain as a producer begins an operation: by a message to another process."""
        self._app.send_task("raw.intake", args=(chain_id,), queue="requests", ignore_result=True)


class Ours:
    """The engine with its scheduler, workers and reconciler, on fakes that take no time."""

    def __init__(
        self,
        bed: Bed,
        *,
        settings: str = FAKES + SINGLE,
        backends: int = 2,
        reports: float = 30.0,
    ) -> None:
        redis, postgres = bed.redis(), bed.postgres()
        url = postgres.url(postgres.create_database())
        # The pace of a real service, not that of the tests.
        engine = {
            "report_expiry": 4 * reports,
            "lease": 20.0,
            "retry_pause": 1.0,
            "report_interval": reports,
        }
        self.deployment = Deployment(bed.directory(), url, redis, settings, engine)
        bed.ends_with(self.deployment.close)
        self.deployment.start(workers=1, concurrency=2).wait_reported(backends)
        self.side = Side(redis, postgres, self.deployment.processes)
        self._app = Celery("producer", broker=redis.url(), backend=redis.url(1))
        self._app.conf.task_send_sent_event = True
        bed.ends_with(self._app.close)

    def start_worker(self, concurrency: int) -> None:
        """Start the steps' worker, instead of the one before; the next batch waits for it."""
        self.deployment.processes["worker-0"].close()
        self.deployment.worker("worker-0", concurrency=concurrency)

    def request(self, verb: str, **fields: Any) -> Publish:
        """How a producer asks for something."""
        payload = self.deployment.payload(**fields)

        def publish(operation_id: str) -> None:
            self._app.send_task(
                f"sharewright.request.{verb}",
                args=(payload,),
                task_id=operation_id,
                queue="requests",
                argsrepr=f"({verb})",
            )

        return publish

    def shares(self, count: int, **fields: Any) -> list[Publish]:
        """Requests for shares of 1 GiB."""
        return [self.request("create_share", size=1, **fields)] * count

    def deletions(self, made: Sequence[Mapping[str, Any]]) -> list[Publish]:
        """Requests to delete what was made."""
        return [self.request("delete_share", share_id=share["id"]) for share in made]

    def networks(self, count: int) -> list[str]:
        """New share networks."""
        ask = self.request("create_share_network", flat_network_ip_pool=["10.0.0.0/24"])
        return [str(made["id"]) for made in self.side.batch([ask] * count).results]
