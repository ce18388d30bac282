"""Serve ``/healthz``, ``/readyz`` and ``/metrics`` on one port.

Each answer is read from the database; this process keeps no figures. So any number of these
processes may run, and the figures survive restarts.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import make_wsgi_app
from prometheus_client.registry import Collector
from sqlalchemy import Connection, Engine, case, func, literal, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnectionLeft

from scheduler.client import broker_fault
from worker.addressing import parse_pool
from worker.config import Config, HealthSettings
from worker.db.core.engine import (
    db_now,
    engine_for,
    insert_into,
    reading,
    transaction,
    wait_for_locks,
)
from worker.db.schema import head, revision
from worker.db.tables.audits import audit_findings
from worker.db.tables.main import (
    addresses,
    backends,
    counters,
    dead_letters,
    operations,
    share_networks,
    storage_pools,
)
from worker.errors import ConfigurationError
from worker.model import LIVE_STATES, NetworkKind, OperationState

_PREFIX: Final = "sharewright_"
READINESS_COUNTER: Final = "readiness_checks_total"
LOCK_SECONDS: Final = 1.0
"""The longest time that a readiness check waits for the write of another one."""
_log = logging.getLogger(__name__)


def missing(config: Config) -> list[str]:
    """Return a sentence for each thing that the service lacks; empty when it is ready."""
    lacks = _missing_from_database(config)
    fault = broker_fault(config.broker.url)
    if fault is not None:
        lacks.append(f"The broker cannot be reached ({fault}).")
    return lacks


def _missing_from_database(config: Config) -> list[str]:
    engine = engine_for(config.database.url)
    try:
        with reading(engine) as connection:
            found = revision(connection)
            if found != head():
                needed = f"this version needs {head()}; run `sharewright db upgrade`."
                return [f"The database is at revision {found or 'none'} and {needed}"]
            recent = select(func.count()).where(
                backends.c.reported_at > db_now() - config.engine.report_expiry
            )
            has_reports = connection.execute(recent).scalar_one() > 0
    except (DBAPIError, NoConnectionLeft) as error:
        return [f"The database cannot be read ({_reason(error)})."]
    try:
        _write(engine)
    except (DBAPIError, NoConnectionLeft) as error:
        return [f"The database can be read, but takes no writes ({_reason(error)})."]
    if not has_reports:
        seconds = f"{config.engine.report_expiry:.0f} s"
        return [f"No backend has reported within {seconds}; is a worker running?"]
    return []


def _reason(error: DBAPIError | NoConnectionLeft) -> str:
    """Return the class and first line of the database driver's error."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    lines = str(cause).strip().splitlines() or [""]
    return f"{type(cause).__name__}: {lines[0]}"


def _write(engine: Engine) -> None:
    """Commit a write, always of the same row, in a transaction like those of the engine's steps."""
    with transaction(engine) as connection:
        wait_for_locks(connection, LOCK_SECONDS)
        counted = update(counters).where(counters.c.name == READINESS_COUNTER)
        if connection.execute(counted.values(value=counters.c.value + 1)).rowcount == 0:
            connection.execute(
                insert_into(connection, counters)
                .values(name=READINESS_COUNTER, value=1)
                .on_conflict_do_nothing()
            )


class _Figures(Collector):
    """Reads the figures from the database at every scrape."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def describe(self) -> Iterable[Metric]:
        """Return no metrics: the database may be unreachable when this starts."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the figures, or only ``database_up`` 0 when the database is unreachable."""
        reachable = GaugeMetricFamily(_PREFIX + "database_up", "Whether the database answers.")
        try:
            with reading(engine_for(self._config.database.url)) as connection:
                figures = [
                    *_operations(connection),
                    *_counters(connection),
                    *holdings(connection, self._config),
                ]
        except DBAPIError as error:
            _log.warning("No figures: the database cannot be read (%s).", type(error.orig).__name__)
            figures = []
        reachable.add_metric([], 1.0 if figures else 0.0)
        yield reachable
        yield from figures


def _operations(connection: Connection) -> Iterator[Metric]:
    """Yield figures of unfinished operations; ended operations do not make this slower."""
    o = operations.c
    states = GaugeMetricFamily(
        _PREFIX + "operations",
        "Operations that are queued, running, or still retried, by state.",
        labels=["state"],
    )
    # A literal: with a parameter, PostgreSQL could not use the partial index of pending operations.
    queued = literal(OperationState.PENDING.value, literal_execute=True)
    pending = select(func.count()).where(o.state == queued)
    counted = {OperationState.PENDING.value: connection.execute(pending).scalar_one()}
    oldest = 0.0
    for row in connection.execute(
        select(
            o.state, func.count().label("number"), (db_now() - func.min(o.accepted_at)).label("age")
        )
        .where(o.due_at.is_not(None))
        .group_by(o.state)
    ):
        counted[row.state] = row.number
        if row.state in LIVE_STATES:
            oldest = max(oldest, row.age)
    for state in OperationState:
        if state is OperationState.COMPENSATION_FAILED or not state.has_ended:
            states.add_metric([state], counted.get(state.value, 0))
    yield states
    age = GaugeMetricFamily(
        _PREFIX + "oldest_live_operation_seconds", "Age of the oldest live operation."
    )
    age.add_metric([], oldest)
    yield age
    kept = GaugeMetricFamily(
        _PREFIX + "dead_letters", "Messages that could not be read, kept aside."
    )
    kept.add_metric(
        [], connection.execute(select(func.count()).select_from(dead_letters)).scalar_one()
    )
    yield kept
    f = audit_findings.c
    findings = GaugeMetricFamily(
        _PREFIX + "audit_findings",
        "Findings of the last audits: orphans, missing objects, and objects with an unknown id.",
        labels=["backend", "problem"],
    )
    for row in connection.execute(
        select(f.backend, f.problem, func.count().label("number")).group_by(f.backend, f.problem)
    ):
        findings.add_metric([row.backend, row.problem], row.number)
    yield findings


_LABELS: Final = {
    "steps_total": ("task", "outcome"),
    "requests_total": ("verb", "outcome"),
    "operations_ended_total": ("state",),
    "dhcp_renewals_total": ("outcome",),
    "audits_total": ("outcome",),
    "audit_removed_total": ("kind",),
    "share_server_outages_total": ("lacks",),
    "dead_letters_dropped_total": ("queue",),
}
_HELP: Final = {
    "steps_total": "Runs of steps and compensations, by how they ended.",
    "requests_total": "Requests, by how they were answered.",
    "operations_ended_total": "Operations with steps by the state in which they ended.",
    "dhcp_renewals_total": "Renewals of DHCP leases: renewed, failed, or failed with none left.",
    "audits_total": "Audits of backends: complete, or without the parts that failed.",
    "audit_removed_total": "Orphans that audits removed.",
    "share_server_outages_total": "Active share servers found without their file server, or gone.",
    "dead_letters_dropped_total": "Messages that could not be read, dropped as too many.",
    "redrives_total": "Operations that the reconciler published again.",
    "compensations_failed_total": "Compensations and deletions that failed for too long.",
    "unknown_operations_total": "Messages for operations that do not exist.",
    READINESS_COUNTER: "Readiness checks for which the database accepted a write.",
    "publish_failures_total": "Messages that could not be published after their commit.",
}
"""Counters without labels are shown from the start, at 0; all others from their first count."""


def _counters(connection: Connection) -> Iterator[Metric]:
    families = {
        name: CounterMetricFamily(_PREFIX + name, text, labels=_LABELS.get(name, ()))
        for name, text in _HELP.items()
    }
    seen: set[str] = set()
    for row in connection.execute(select(counters.c.name, counters.c.value)):
        name, *labels = row.name.split(":")
        if name not in families:
            families[name] = CounterMetricFamily(_PREFIX + name, "Counted by the engine.")
        if len(labels) == len(_LABELS.get(name, ())):
            families[name].add_metric(labels, float(row.value))
            seen.add(name)
    for name, family in families.items():
        if name not in seen and name not in _LABELS:
            family.add_metric([], 0.0)
        yield family


def _address_pools(connection: Connection) -> dict[str, int]:
    """Return the number of addresses of each flat network, of backends and of share networks."""
    sizes: dict[str, int] = {}
    for (report,) in connection.execute(select(backends.c.report)):
        sizes.update(report.get("address_pools", {}))
    n = share_networks.c
    flat = select(n.id, n.flat_network_ip_pool, n.flat_network_subnet, n.flat_network_gateway)
    for row in connection.execute(flat.where(n.kind == NetworkKind.FLAT_POOL.value)):
        pool = parse_pool(
            row.flat_network_ip_pool,
            subnet=row.flat_network_subnet,
            gateway=row.flat_network_gateway,
        )
        sizes[f"share_network:{row.id}"] = pool.size
    return sizes


def holdings(connection: Connection, config: Config) -> Iterator[Metric]:
    """Yield the use of address pools and storage pools, and which backends are up."""
    a, p = addresses.c, storage_pools.c
    pool = GaugeMetricFamily(
        _PREFIX + "addresses",
        "Addresses of a flat network: held, resting, or free.",
        labels=["pool", "state"],
    )
    resting = case((a.share_server_id.is_(None), 1), else_=0)
    free = _address_pools(connection)
    for row in connection.execute(
        select(a.domain, func.count().label("all"), func.sum(resting).label("resting"))
        .where((a.share_server_id.is_not(None)) | (a.rests_until > db_now()))
        .group_by(a.domain)
    ):
        pool.add_metric([row.domain, "held"], row.all - row.resting)
        pool.add_metric([row.domain, "resting"], row.resting)
        if row.domain in free:
            free[row.domain] -= row.all
    for domain, count in sorted(free.items()):
        pool.add_metric([domain, "free"], count)
    yield pool
    storage = GaugeMetricFamily(
        _PREFIX + "storage_pool_gib",
        "GiB of a storage pool: total, free, and reserved for shares (allocated).",
        labels=["backend", "pool", "amount"],
    )
    for row in connection.execute(
        select(p.backend, p.name, p.total_gib, p.free_gib, p.allocated_gib)
    ):
        for amount in ("total", "free", "allocated"):
            storage.add_metric([row.backend, row.name, amount], getattr(row, f"{amount}_gib"))
    yield storage
    up = GaugeMetricFamily(
        _PREFIX + "backend_up", "Whether a backend reported recently.", labels=["backend"]
    )
    age = db_now() - backends.c.reported_at
    for row in connection.execute(select(backends.c.name, age.label("age"))):
        is_up = row.age is not None and row.age <= config.engine.report_expiry
        up.add_metric([row.name], float(is_up))
    yield up


StartResponse = Callable[..., Any]
WsgiApp = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]


def make_wsgi(config: Config) -> WsgiApp:
    """Return the WSGI application that answers the three paths."""
    registry = CollectorRegistry()
    registry.register(_Figures(config))
    metrics: WsgiApp = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            return metrics(environ, start_response)
        status = HTTPStatus.OK
        document: dict[str, Any] = {"status": "alive"}
        if path == "/readyz":
            lacks = missing(config)
            status = HTTPStatus.SERVICE_UNAVAILABLE if lacks else HTTPStatus.OK
            document = {"status": "not ready" if lacks else "ready", "missing": lacks}
        elif path != "/healthz":
            status, document = HTTPStatus.NOT_FOUND, {"status": "no such page"}
        body = json.dumps(document).encode() + b"\n"
        start_response(
            f"{status.value} {status.phrase}",
            [("Content-Type", "application/json"), ("Content-Length", str(len(body)))],
        )
        return [body]

    return answer


class _Server(ThreadingMixIn, WSGIServer):
    """Serves on a socket that is already listening."""

    daemon_threads = True

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(listener.getsockname()[:2], _QuietHandler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.server_name, self.server_port = listener.getsockname()[:2]
        self.setup_environ()


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Log a request at level DEBUG."""
        _log.debug(format, *args)


def listen(settings: HealthSettings) -> socket.socket:
    """Open the port; raises :class:`~worker.errors.ConfigurationError` when it is taken."""
    try:
        return socket.create_server((settings.address, settings.port))
    except OSError as error:
        raise ConfigurationError(
            f"Cannot listen on {settings.address} port {settings.port} ({error.strerror}); "
            f"set [health] address and port."
        ) from error


def serve(config: Config, listener: socket.socket, stopped: threading.Event) -> None:
    """Answer requests until ``stopped`` is set."""
    server = _Server(listener)
    server.set_app(make_wsgi(config))
    thread = threading.Thread(target=server.serve_forever, name="health", daemon=True)
    thread.start()
    stopped.wait()
    server.shutdown()
    server.server_close()
