"""Report the pools of backends for placement; one worker at a time reports each backend."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sqlalchemy import Connection, delete, func, or_, select, update

from worker.backends.manager import Report
from worker.db.core.engine import db_now, insert_into, transaction
from worker.db.tables.main import backends, storage_pools
from worker.engine.job import Runtime
from worker.errors import SharewrightError
from worker.model import RequestContext

TASK = "report_pools"
REPORT_TIMEOUT = 60.0
"""Seconds after which another worker may report a backend, because the first may have crashed."""
PORTION = 50
"""The number of backends in one message: few enough to be reported within the time limit."""

_log = logging.getLogger(__name__)


def report_pools(runtime: Runtime, names: Sequence[str]) -> None:
    """Report each named backend unless another worker is reporting it or has just reported it."""
    known = [name for name in names if name in runtime.config.backends]
    for name in _take(runtime, known):
        try:
            report = runtime.manager(name).report(RequestContext(""))
        except SharewrightError as error:
            _log.warning("Backend %s could not be asked for its pools: %s", name, error.message)
            with transaction(runtime.engine) as connection:
                connection.execute(
                    update(backends)
                    .where(backends.c.name == name)
                    .values(report_error=error.message, reporting_until=None)
                )
        else:
            with transaction(runtime.engine) as connection:
                _write(connection, name, report, runtime.config.backends[name].capabilities)


def _take(runtime: Runtime, names: Sequence[str]) -> list[str]:
    """Claim backends for reporting and return their names; skip those reported recently."""
    column = backends.c
    with transaction(runtime.engine) as connection:
        connection.execute(
            insert_into(connection, backends).on_conflict_do_nothing(),
            [{"name": name, "report": {}} for name in sorted(names)],
        )
        # Always in one order, so that two reporters of the same backends do not deadlock.
        due = connection.execute(
            select(column.name)
            .where(
                column.name.in_(names),
                or_(column.reporting_until.is_(None), column.reporting_until < db_now()),
                or_(
                    column.reported_at.is_(None),
                    column.reported_at < db_now() - runtime.config.engine.report_interval / 2,
                ),
            )
            .order_by(column.name)
            .with_for_update(skip_locked=True)
        ).scalars()
        taken = list(due)
        connection.execute(
            update(backends)
            .where(column.name.in_(taken))
            .values(reporting_until=db_now() + REPORT_TIMEOUT)
        )
    return taken


def _write(connection: Connection, name: str, report: Report, capabilities: dict[str, str]) -> None:
    connection.execute(
        update(backends)
        .where(backends.c.name == name)
        .values(
            report={
                "mode": report.mode,
                "protocols": list(report.protocols),
                "network_kinds": list(report.network_kinds),
                "can_extend": report.can_extend,
                "address_pools": dict(report.address_pools),
            },
            reported_at=db_now(),
            reporting_until=None,
            report_error="",
            check_at=func.coalesce(backends.c.check_at, db_now()) if report.is_watched else None,
        )
    )
    for pool in report.pools:
        fresh = {
            "total_gib": pool.total_gib,
            "free_gib": pool.free_gib,
            "capabilities": {**pool.capabilities, **capabilities},
            "reported_at": db_now(),
            "changed_at": db_now(),
        }
        connection.execute(
            insert_into(connection, storage_pools)
            .values(backend=name, name=pool.name, **fresh)
            .on_conflict_do_update(
                index_elements=[storage_pools.c.backend, storage_pools.c.name], set_=fresh
            )
        )
    reported = [pool.name for pool in report.pools]
    connection.execute(
        delete(storage_pools).where(
            storage_pools.c.backend == name,
            storage_pools.c.name.not_in(reported),
            storage_pools.c.shares == 0,
        )
    )
