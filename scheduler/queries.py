"""Every request that only reads: one SELECT or two each, scoped to the asker's project.

Another project's object is "not found". Lists are pages in the order of age (keyset: the
``marker`` is the id of the last object of the page before); a short page is the last one.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    Table,
    or_,
    select,
    tuple_,
)

from scheduler.requests import (
    BackendOnly,
    Context,
    ListAccess,
    ListBackends,
    ListOperations,
    ListSecurityServices,
    ListShareNetworks,
    ListShares,
    ListShareServers,
    ListShareTypes,
    ListSnapshots,
    OperationOnly,
    SecurityServiceOnly,
    ShareNetworkOnly,
    ShareOnly,
    ShareServerOnly,
    ShareTypeOnly,
    ShowSealingKey,
    SnapshotOnly,
)
from worker.config import Config
from worker.db.documents import moment, network_info, server_details, shown
from worker.db.engine import db_now
from worker.db.tables import (
    access_rules,
    backends,
    operation_aliases,
    operation_steps,
    operations,
    security_services,
    share_network_security_services,
    share_networks,
    share_servers,
    share_types,
    shares,
    snapshots,
    storage_pools,
)
from worker.errors import ConfigurationError, Forbidden, InvalidRequest, NotFound
from worker.model import ServerStatus
from worker.sealing import Keys

Read = Callable[[Connection, Any, Config], dict[str, Any]]
"""Answers a validated payload; raises :class:`~worker.errors.Refused`."""

ADMIN_ROLE: Final = "admin"


def _all_projects(request: Any) -> bool:
    if request.all_projects and ADMIN_ROLE not in request.context.roles:
        raise Forbidden(
            f"Only the role {ADMIN_ROLE!r} may list the objects of all projects.",
            field="all_projects",
        )
    return bool(request.all_projects)


def _mine(table: Table, context: Context) -> ColumnElement[bool]:
    """What a project may see: its own, and what is public."""
    own = table.c.project_id == context.project_id
    return or_(own, table.c.is_public) if "is_public" in table.c else own


def _missing(kind: str, object_id: str, field: str) -> NotFound:
    return NotFound(
        f"There is no {kind} {object_id} in this project.",
        object=f"{kind} {object_id}",
        field=field,
    )


def _show(
    connection: Connection, table: Table, kind: str, context: Context, object_id: str
) -> dict[str, Any]:
    row = connection.execute(
        select(table).where(table.c.id == object_id, _mine(table, context))
    ).first()
    if row is None:
        raise _missing(kind, object_id, f"{kind.replace(' ', '_')}_id")
    return shown(row)


def _page(
    connection: Connection,
    statement: Select[Any],
    *,
    order: tuple[ColumnElement[Any], ...],
    marker_id: ColumnElement[Any],
    request: Any,
    visible: ColumnElement[bool] | None,
) -> tuple[Sequence[Row[Any]], str | None]:
    """Rows after the marker, and the next page's marker if there is one."""
    if visible is not None:
        statement = statement.where(visible)
    if request.marker is not None:
        position = select(*order).where(marker_id == request.marker)
        if visible is not None:
            position = position.where(visible)
        after = connection.execute(position).first()
        if after is None:
            raise InvalidRequest(
                f"The marker {request.marker} is no object of this list any more; begin again "
                f"without a marker.",
                field="marker",
            )
        statement = statement.where(tuple_(*order) > tuple_(*after))
    rows = connection.execute(statement.order_by(*order).limit(request.limit + 1)).all()
    page = rows[: request.limit]
    more = len(rows) > request.limit
    return page, str(getattr(page[-1], marker_id.key or "id")) if more else None


def _list(
    connection: Connection,
    table: Table,
    plural: str,
    request: Any,
    filters: Mapping[str, Any],
    *conditions: ColumnElement[bool],
) -> dict[str, Any]:
    visible = None if _all_projects(request) else _mine(table, request.context)
    statement = select(table).where(
        *(table.c[name] == value for name, value in filters.items() if value is not None),
        *conditions,
    )
    rows, marker = _page(
        connection,
        statement,
        order=(table.c.created_at, table.c.id),
        marker_id=table.c.id,
        request=request,
        visible=visible,
    )
    return {plural: [shown(row) for row in rows], "next_marker": marker}


def show_share(connection: Connection, request: ShareOnly, _config: Config) -> dict[str, Any]:
    """Return one share."""
    return _show(connection, shares, "share", request.context, request.share_id)


def list_shares(connection: Connection, request: ListShares, _config: Config) -> dict[str, Any]:
    """Return a page of shares."""
    conditions = []
    if request.share_type is not None:
        t = share_types.c
        named = select(t.id).where(or_(t.id == request.share_type, t.name == request.share_type))
        conditions.append(shares.c.share_type_id.in_(named))
    filters = request.model_dump(
        include={
            *("name", "status", "share_network_id", "share_server_id", "snapshot_id", "backend")
        }
    )
    return _list(connection, shares, "shares", request, filters, *conditions)


def show_snapshot(connection: Connection, request: SnapshotOnly, _config: Config) -> dict[str, Any]:
    """Return one snapshot."""
    return _show(connection, snapshots, "snapshot", request.context, request.snapshot_id)


def list_snapshots(
    connection: Connection, request: ListSnapshots, _config: Config
) -> dict[str, Any]:
    """Return a page of snapshots."""
    filters = request.model_dump(include={"name", "status", "share_id"})
    return _list(connection, snapshots, "snapshots", request, filters)


def list_access(connection: Connection, request: ListAccess, _config: Config) -> dict[str, Any]:
    """Return a page of a share's access rules."""
    if not _all_projects(request):
        # An empty list would say that the share of another project exists.
        _show(connection, shares, "share", request.context, request.share_id)
    filters = request.model_dump(include={"share_id", "state"})
    return _list(connection, access_rules, "access_rules", request, filters)


def show_share_network(
    connection: Connection, request: ShareNetworkOnly, _config: Config
) -> dict[str, Any]:
    """Return one share network, the project's own or a public one, and what to attach to."""
    network_id, context = request.share_network_id, request.context
    found = _show(connection, share_networks, "share network", context, network_id)
    a = share_network_security_services.c
    added = connection.execute(
        select(a.security_service_id, a.type)
        .where(a.share_network_id == network_id)
        .order_by(a.type)
    )
    return {
        **found,
        "security_services": [{"id": row.security_service_id, "type": row.type} for row in added],
        "attachments": _attachments(connection, network_id, context),
    }


def _attachments(connection: Connection, network_id: str, context: Context) -> list[dict[str, Any]]:
    """What the project's share servers are on, so what its clients must be on to reach them."""
    s = share_servers.c
    servers = connection.execute(
        select(s.backend, s.network_info, s.details)
        .where(
            s.share_network_id == network_id,
            s.status == ServerStatus.ACTIVE.value,
            _mine(share_servers, context),
        )
        .order_by(s.backend, s.created_at)
    )
    different: list[dict[str, Any]] = []
    for server in servers:
        info, details = network_info(server.network_info), server_details(server.details)
        assert info is not None, "an active server has its addresses"
        assert details is not None, "an active server was found to serve"
        attachment = {
            "backend": server.backend,
            "cidr": info.cidr,
            "gateway": info.gateway,
            "segmentation_type": info.segmentation_type,
            "segmentation_id": info.segmentation_id,
            "mtu": info.mtu,
            "bridge": details.attributes.get("bridge"),
        }
        if attachment not in different:
            different.append(attachment)
    return different


def list_share_networks(
    connection: Connection, request: ListShareNetworks, _config: Config
) -> dict[str, Any]:
    """Return a page of share networks, the project's own and public ones."""
    filters = request.model_dump(include={"name", "kind"}, mode="json")
    return _list(connection, share_networks, "share_networks", request, filters)


def show_security_service(
    connection: Connection, request: SecurityServiceOnly, _config: Config
) -> dict[str, Any]:
    """Return one security service, and with which key its password is sealed."""
    service_id = request.security_service_id
    return _show(connection, security_services, "security service", request.context, service_id)


def list_security_services(
    connection: Connection, request: ListSecurityServices, _config: Config
) -> dict[str, Any]:
    """Return a page of security services."""
    conditions = []
    if request.share_network_id is not None:
        a = share_network_security_services.c
        added = select(a.security_service_id).where(a.share_network_id == request.share_network_id)
        conditions.append(security_services.c.id.in_(added))
    filters = request.model_dump(include={"name", "type"}, mode="json")
    return _list(connection, security_services, "security_services", request, filters, *conditions)


def show_sealing_key(
    _connection: Connection, _request: ShowSealingKey, config: Config
) -> dict[str, Any]:
    """Return the public key that passwords are sealed with."""
    try:
        key = Keys(config.secrets.directory).current()
    except ConfigurationError as error:
        raise NotFound(error.message, object="sealing key") from error
    if key is None:
        raise NotFound(
            "This service has no key to seal passwords with; an administrator makes one with "
            "`sharewright secrets generate`.",
            object="sealing key",
        )
    return {"key_id": key.id, "public_key": base64.b64encode(key.public).decode()}


def show_share_type(
    connection: Connection, request: ShareTypeOnly, _config: Config
) -> dict[str, Any]:
    """Return one share type by id or name; share types are everybody's."""
    t = share_types.c
    row = connection.execute(
        select(share_types)
        .where(or_(t.id == request.share_type, t.name == request.share_type))
        # An id before a name, should somebody have named a type by another's id.
        .order_by(t.id != request.share_type)
        .limit(1)
    ).first()
    if row is None:
        raise _missing("share type", request.share_type, "share_type")
    return shown(row)


def list_share_types(
    connection: Connection, request: ListShareTypes, _config: Config
) -> dict[str, Any]:
    """Return a page of share types; they are everybody's."""
    t = share_types.c
    statement = select(share_types)
    if request.name is not None:
        statement = statement.where(t.name == request.name)
    rows, marker = _page(
        connection,
        statement,
        order=(t.created_at, t.id),
        marker_id=t.id,
        request=request,
        visible=None,
    )
    return {"share_types": [shown(row) for row in rows], "next_marker": marker}


def show_share_server(
    connection: Connection, request: ShareServerOnly, _config: Config
) -> dict[str, Any]:
    """Return one share server."""
    return _show(
        connection, share_servers, "share server", request.context, request.share_server_id
    )


def list_share_servers(
    connection: Connection, request: ListShareServers, _config: Config
) -> dict[str, Any]:
    """Return a page of share servers."""
    filters = request.model_dump(include={"status", "share_network_id", "backend"})
    return _list(connection, share_servers, "share_servers", request, filters)


# The payload is not among them: it may hold what a later verb must keep secret.
_OPERATION_COLUMNS: Final = tuple(
    operations.c[name]
    for name in (
        *("id", "project_id", "user_id", "request_id", "verb", "resource_kind", "resource_id"),
        *("backend", "state", "phase", "undoing", "task", "attempts", "waits_for", "redrives"),
        *("worker", "error", "result", "accepted_at", "finished_at"),
    )
)
_STEP_COLUMNS: Final = tuple(
    operation_steps.c[name]
    for name in ("task", "outcome", "attempt", "worker", "started_at", "finished_at", "message")
)


def show_operation(
    connection: Connection, request: OperationOnly, _config: Config
) -> dict[str, Any]:
    """Return an operation with its timeline: every act that ended so far, and how.

    A request that was sent again under another id, with the same idempotency key, is found by
    either.
    """
    o, a = operations.c, operation_aliases.c
    alias = select(a.operation_id).where(a.id == request.operation_id)
    row = connection.execute(
        select(*_OPERATION_COLUMNS)
        .where(
            or_(o.id == request.operation_id, o.id == alias.scalar_subquery()),
            o.project_id == request.context.project_id,
        )
        .limit(1)
    ).first()
    if row is None:
        raise _missing("operation", request.operation_id, "operation_id")
    steps = connection.execute(
        select(*_STEP_COLUMNS)
        .where(operation_steps.c.operation_id == row.id)
        .order_by(operation_steps.c.seq)
    )
    return {**shown(row), "steps": [_step(step) for step in steps]}


def _step(row: Row[Any]) -> dict[str, Any]:
    return {
        **row._asdict(),
        "started_at": moment(row.started_at),
        "finished_at": moment(row.finished_at),
        "seconds": round(row.finished_at - row.started_at, 3),
    }


def list_operations(
    connection: Connection, request: ListOperations, _config: Config
) -> dict[str, Any]:
    """Return a page of operations, without their timelines, in the order of acceptance."""
    o = operations.c
    filters = request.model_dump(include={"state", "verb", "resource_id"})
    everybodys = _all_projects(request)
    rows, marker = _page(
        connection,
        select(*_OPERATION_COLUMNS).where(
            *(o[name] == value for name, value in filters.items() if value is not None)
        ),
        order=(o.seq,),
        marker_id=o.id,
        request=request,
        visible=None if everybodys else o.project_id == request.context.project_id,
    )
    return {"operations": [shown(row) for row in rows], "next_marker": marker}


def show_backend(connection: Connection, request: BackendOnly, config: Config) -> dict[str, Any]:
    """Return a backend, whether it is up, and its storage pools (an administrator's)."""
    row = connection.execute(_BACKENDS.where(backends.c.name == request.backend)).first()
    if row is None:
        raise NotFound(
            f"No backend {request.backend} has ever reported.",
            object=f"backend {request.backend}",
            field="backend",
        )
    return _backends(connection, [row], config)[0]


def list_backends(connection: Connection, request: ListBackends, config: Config) -> dict[str, Any]:
    """Return a page of backends by name (an administrator's)."""
    rows, marker = _page(
        connection,
        _BACKENDS,
        order=(backends.c.name,),
        marker_id=backends.c.name,
        request=request,
        visible=None,
    )
    return {"backends": _backends(connection, rows, config), "next_marker": marker}


_BACKENDS: Final = select(backends, (db_now() - backends.c.reported_at).label("age"))


def _backends(
    connection: Connection, rows: Sequence[Row[Any]], config: Config
) -> list[dict[str, Any]]:
    p = storage_pools.c
    pools = connection.execute(
        select(p.backend, p.name, p.total_gib, p.free_gib, p.allocated_gib, p.shares)
        .where(p.backend.in_([row.name for row in rows]))
        .order_by(p.backend, p.name)
    ).all()
    return [
        {
            "name": row.name,
            "enabled": row.enabled,
            "disabled_reason": row.disabled_reason,
            "state": _up_or_down(row.age, config),
            "reported_at": moment(row.reported_at),
            "report_error": row.report_error,
            "report": row.report,
            "pools": [
                {name: value for name, value in pool._asdict().items() if name != "backend"}
                for pool in pools
                if pool.backend == row.name
            ],
        }
        for row in rows
    ]


def _up_or_down(age: float | None, config: Config) -> str:
    return "up" if age is not None and age <= config.engine.report_expiry else "down"


READS: Final[Mapping[str, Read]] = {
    read.__name__: read
    for read in (
        *(show_share, list_shares, show_snapshot, list_snapshots, list_access),
        *(show_share_network, list_share_networks, show_share_type, list_share_types),
        *(show_security_service, list_security_services, show_sealing_key),
        *(show_share_server, list_share_servers, show_operation, list_operations),
        *(show_backend, list_backends),
    )
}
"""What answers each verb of :class:`~scheduler.requests.Kind` READ."""
