"""Handlers of administrators' requests about share servers: delete, and ensure."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Row, select

from scheduler.acceptance import lookup
from scheduler.acceptance.accept import Acceptance
from scheduler.requests.share_servers import EnsureShareServers
from worker.db.share_servers import health
from worker.db.share_servers import store as servers
from worker.db.tables.main import share_servers
from worker.engine.accept import Begin, Completed
from worker.errors import Conflict, NotFound, ObjectKind
from worker.model import DriverMode, ServerStatus
from worker.tasks import repairs
from worker.tasks.clean_up import SAGA as CLEAN_UP

_DELETABLE: Final = (ServerStatus.ACTIVE, ServerStatus.ERROR, ServerStatus.ERROR_DELETING)
_s = share_servers.c


def delete(acceptance: Acceptance) -> Begin:
    """Begin the deletion of a share server without shares, even of one in error."""
    row = lookup.share_server(acceptance.connection, acceptance.request.share_server_id)
    if row.shares:
        raise Conflict(
            f"{row.shares} share{'s are' if row.shares > 1 else ' is'} on the share server "
            f"{row.id}; delete {'them' if row.shares > 1 else 'it'} first.",
            object=ObjectKind.SHARE_SERVER.ref(row.id),
        )
    lookup.check_status(row, ObjectKind.SHARE_SERVER, *_DELETABLE, to="delete")
    servers.mark_deleting(acceptance.connection, row.id, acceptance.operation_id, among=_DELETABLE)
    resource = ("share_server", row.id)
    because = f"The share server {row.id} is being deleted."
    acceptance.dispatches.extend(
        repairs.cancel(acceptance.connection, acceptance.config, resource, because)
    )
    return Begin(CLEAN_UP, resource, row.backend)


def ensure(acceptance: Acceptance) -> Completed:
    """Begin an operation for every requested active server; it starts one for each share."""
    request: EnsureShareServers = acceptance.request
    backends = _backends(acceptance, request)
    rows = _requested(acceptance, request, backends)
    predefined = [] if request.share_server_id else _predefined(acceptance, backends)
    context = request.context
    requester = repairs.Requester(context.project_id, context.user_id, context.request_id)
    started = []
    for resource, backend in [
        *((("share_server", row.id), row.backend) for row in rows),
        *((("backend", name), name) for name in predefined),
    ]:
        one = repairs.start(
            acceptance.connection,
            acceptance.config,
            acceptance.sagas,
            Begin(repairs.ENSURE_SERVER, resource, backend),
            requester=requester,
        )
        acceptance.dispatches.extend(one.dispatches)
        started.append(one.operation_id)
    return Completed(
        ("share_servers", request.share_server_id or "several"), {"operations": started}
    )


def _backends(acceptance: Acceptance, request: EnsureShareServers) -> list[str]:
    """Return the requested backends; they must be configured, since others have no workers."""
    known = acceptance.config.backends
    if request.backend is not None:
        if request.backend not in known:
            raise NotFound(
                f"There is no backend {request.backend} in the configuration.",
                object=ObjectKind.BACKEND.ref(request.backend),
                field="backend",
            )
        return [request.backend]
    if request.host is None:
        return sorted(known)
    found = sorted(name for name, one in known.items() if one.host == request.host)
    if not found:
        raise NotFound(
            f"No backend in the configuration is bound to host {request.host}.",
            object=ObjectKind.HOST.ref(request.host),
            field="host",
        )
    return found


def _requested(
    acceptance: Acceptance, request: EnsureShareServers, backends: list[str]
) -> list[Row[Any]]:
    """Return the requested active servers, locked until the commit."""
    if request.share_server_id is not None:
        row = lookup.share_server(acceptance.connection, request.share_server_id)
        lookup.check_status(row, ObjectKind.SHARE_SERVER, ServerStatus.ACTIVE, to="ensure")
        return [row]
    return list(
        acceptance.connection.execute(
            select(share_servers)
            .where(_s.status == ServerStatus.ACTIVE.value, _s.backend.in_(backends))
            .order_by(_s.id)
            .with_for_update()
        )
    )


def _predefined(acceptance: Acceptance, backends: list[str]) -> list[str]:
    """Return the backends with a predefined server, which has no row; lock their own rows."""
    single = [
        name for name in backends if acceptance.config.backends[name].mode is DriverMode.SINGLE_SVM
    ]
    for name in single:
        health.hold_backend(acceptance.connection, name)
    return single
