"""A scheduler alone: requests are taken in, and nobody does their steps."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from sqlalchemy import func, insert, select, update

from scheduler.acceptance.accept import take_in as take_request_in
from scheduler.acceptance.handlers import HANDLERS
from scheduler.placement.pool_cache import cache_for
from scheduler.requests.base import digest, parse
from scheduler.requests.verbs import VERBS
from tests.support.deployment import Deployment
from tests.support.pace import limit
from tests.support.services import RedisServer, wait_until
from worker.config import Config, load
from worker.db.core.engine import db_now, engine_for, reading, transaction
from worker.db.tables.all import metadata
from worker.db.tables.main import backends, operations, share_networks, storage_pools
from worker.engine.heartbeat import Heartbeat
from worker.engine.job import Runtime
from worker.errors import RequestFailed
from worker.model import NetworkKind
from worker.tasks.sagas import SAGAS

BACKENDS = """
[backends.fake]
mode = "flat_multi_svm"
share_driver = "fake"
compute_helper = "fake"
network_helpers = ["fake"]
share_network_addresses = true
[backends.small]
mode = "single_svm"
share_driver = "fake"
"""
ENGINE = {"report_expiry": 3600.0, "max_queued_operations": 3, "max_share_size": 1000}
SMALL_GIB = 20


class Intake(Deployment):
    """A deployment whose backends have "reported" by the test's own word."""

    def __init__(self, directory: Path, database_url: str, redis: RedisServer) -> None:
        super().__init__(directory, database_url, redis, settings=BACKENDS, engine=ENGINE)
        self.report("fake", "flat_multi_svm", 1_000_000)
        self.report("small", "single_svm", SMALL_GIB)

    @property
    def config(self) -> Config:
        return load(self.config_path)

    def report(self, backend: str, mode: str, gib: int) -> None:
        report = {
            "mode": mode,
            "protocols": ["NFS"],
            "network_kinds": [str(kind) for kind in NetworkKind],
            "can_extend": True,
        }
        with transaction(self.engine) as connection:
            connection.execute(
                insert(backends).values(name=backend, report=report, reported_at=db_now())
            )
            connection.execute(
                insert(storage_pools).values(
                    backend=backend,
                    name="pool",
                    total_gib=gib,
                    free_gib=gib,
                    capabilities={},
                    reported_at=db_now(),
                )
            )

    def counts(self) -> dict[str, int]:
        """Rows of every table but the counters, which the heartbeat writes when it likes."""
        with reading(self.engine) as connection:
            return {
                table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
                for table in metadata.sorted_tables
                if table.name != "counters"
            }

    def send(
        self, verb: str, asked: Any, *, operation_id: str | None = None, admin: bool = False
    ) -> str:
        """Publish a request and no more; return its id."""
        request_id = operation_id or str(uuid.uuid4())
        self.client.send(verb, asked, operation_id=request_id, admin=admin)
        return request_id

    def outcome(self, request_id: str) -> Any:
        """A request's object, or the exception that its producer gets."""
        try:
            return self.client.result(request_id, timeout=limit())
        except RequestFailed as failed:
            return failed

    def refusal(self, verb: str, asked: Any, *, admin: bool = False) -> RequestFailed:
        """Send what must be refused, and see that no row is left."""
        before = self.counts()
        failed = self.outcome(self.send(verb, asked, admin=admin))
        assert isinstance(failed, RequestFailed), failed
        assert self.counts() == before
        assert failed.message.endswith((".", "?"))
        return failed

    def accepted(self, verb: str, project: str, **fields: Any) -> str:
        """Submit and wait for the acceptance; return the operation's id."""
        return self.client.submit(verb, self.payload(project, **fields), timeout=limit())

    def share(self, project: str, *, status: str = "available", size: int = 1) -> str:
        """A share whose create "ended": its operation is closed by hand."""
        network = self.network(project)
        created = self.accepted("create_share", project, size=size, share_network_id=network)
        share = str(self.operation(created).resource_id)
        self.close_operation(created)
        self.set(metadata.tables["shares"], share, status=status)
        return share

    def operation(self, operation_id: str) -> Any:
        with reading(self.engine) as connection:
            return connection.execute(
                select(operations).where(operations.c.id == operation_id)
            ).one()

    def close_operation(self, operation_id: str, **values: Any) -> None:
        ended = {"state": "succeeded", "phase": None, "due_at": None, "result": {}, **values}
        with transaction(self.engine) as connection:
            connection.execute(
                update(operations).where(operations.c.id == operation_id).values(ended)
            )

    def set(self, table: Any, object_id: str, **values: Any) -> None:
        with transaction(self.engine) as connection:
            connection.execute(update(table).where(table.c.id == object_id).values(values))

    def rows(self, table: Any, **values: Any) -> list[Any]:
        with reading(self.engine) as connection:
            return list(
                connection.execute(
                    select(table).where(*(table.c[name] == value for name, value in values.items()))
                )
            )

    def idle(self) -> None:
        """Wait until nothing is queued for the scheduler."""
        with self.redis.client() as client:
            wait_until(
                lambda: not client.llen("requests") and not client.hlen("unacked"),
                "the scheduler has nothing to do",
            )


def take_in(config: Config, verb: str, asked: dict[str, Any], operation_id: str) -> dict[str, Any]:
    """Accept a request in this very process; return what was stored as results."""
    stored: dict[str, Any] = {}

    def store(request_id: str, result: Any, error: Any) -> None:
        stored[request_id] = error or result

    engine = engine_for(config.database.url)
    runtime = Runtime(
        config=config,
        engine=engine,
        sagas=SAGAS,
        manager=_nobody,
        publish=lambda _dispatch: None,
        store_result=store,
        worker="test",
        heartbeat=Heartbeat(engine, config.engine.lease),
    )
    known = VERBS[verb]
    request = parse(known, asked)
    try:
        take_request_in(
            runtime,
            cache_for(config, engine),
            known,
            HANDLERS[verb],
            request,
            operation_id=operation_id,
            digest=digest(known, request),
            is_admin=known.admin,
            heard=lambda: None,
        )
    finally:
        runtime.heartbeat.stop()
    return stored


def _nobody(backend: str) -> Any:
    raise AssertionError(f"the intake does nothing on backend {backend}")


def share_network_of(project: str) -> dict[str, Any]:
    """The values of a share network's row, for tests without a scheduler."""
    return {
        "id": str(uuid.uuid4()),
        "project_id": project,
        "metadata": {},
        "kind": "flat_pool",
        "flat_network_ip_pool": ["10.0.0.0/24"],
        "created_at": db_now(),
        "updated_at": db_now(),
    }


def add_network(url: str, project: str) -> str:
    """Write a share network's row; return its id."""
    values = share_network_of(project)
    with transaction(engine_for(url)) as connection:
        connection.execute(insert(share_networks).values(values))
    return str(values["id"])
