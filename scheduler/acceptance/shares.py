"""Handlers of share requests: create (with placement), delete, extend."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

from sqlalchemy import Row, bindparam, insert, select

from scheduler.acceptance import lookup, quotas
from scheduler.acceptance.accept import Acceptance
from scheduler.placement.choose import candidates, no_capacity, refusals
from scheduler.placement.filters import PlacementRequest
from scheduler.placement.pools import Pool, reserve
from scheduler.requests.shares import CreateShare, ExtendShare
from worker.db import shares, snapshots
from worker.db.core.engine import db_now
from worker.db.core.prepared import Prepared
from worker.db.operations import store as operations
from worker.db.quotas import Limits, growth_of
from worker.db.share_servers import store as servers
from worker.db.tables import main as tables
from worker.db.tables.main import operations as operations_table
from worker.engine.accept import Begin
from worker.errors import Conflict, ErrorCode, InvalidRequest, ObjectKind
from worker.model import NetworkKind, OperationState, QuotaResource, ShareStatus
from worker.tasks import repairs
from worker.tasks.servers import limits_of

_PLACEMENT_ROUNDS = 3
_GIVEN = (
    *("id", "project_id", "name", "description", "metadata", "size", "share_proto"),
    *("share_type_id", "share_network_id", "snapshot_id", "backend", "pool", "allocated_gib"),
    "export_locations",
)
_INSERT = Prepared(
    insert(tables.shares).values(
        **{name: bindparam(name) for name in _GIVEN},
        status=ShareStatus.CREATING.value,
        created_at=db_now(),
        updated_at=db_now(),
    )
)


def create(acceptance: Acceptance) -> Begin:
    """Choose a pool, reserve capacity on it, write the share, and begin its creation."""
    request: CreateShare = acceptance.request
    connection = acceptance.connection
    _check_size(acceptance, request.size, "size")
    limits = quotas.hold(acceptance)
    share_type = lookup.share_type(connection, request.share_type) if request.share_type else None
    quotas.check(
        acceptance,
        limits,
        {QuotaResource.SHARES: 1, QuotaResource.GIGABYTES: request.size},
        share_type_id=share_type.id if share_type is not None else None,
        field="size",
    )
    source = _source(acceptance, request)
    network = _network(acceptance, request, source, share_type)
    pool = _place(
        acceptance,
        PlacementRequest(
            size=request.size,
            share_proto=request.share_proto,
            network_kind=NetworkKind(network.kind) if network is not None else None,
            extra_specs=share_type.extra_specs if share_type is not None else {},
            report_expiry=acceptance.config.engine.report_expiry,
            only=(source.backend, source.pool) if source is not None else None,
            serving=_serving(acceptance, network, request.size) if source is None else frozenset(),
        ),
    )
    on_server = pool.offer.mode.has_share_servers
    if network is not None and on_server:
        acceptance.pools.sent(acceptance.project_id, network.id, pool.backend)
    share_id = str(uuid.uuid4())
    _INSERT.run(
        connection,
        id=share_id,
        project_id=acceptance.project_id,
        name=request.name,
        description=request.description,
        metadata=request.metadata,
        size=request.size,
        share_proto=request.share_proto,
        share_type_id=share_type.id if share_type is not None else None,
        share_network_id=network.id if network is not None else None,
        snapshot_id=request.snapshot_id,
        backend=pool.backend,
        pool=pool.name,
        allocated_gib=request.size,
        export_locations=[],
    )
    saga = "create_share" if on_server else "create_share_single_svm"
    return Begin(saga, ("share", share_id), pool.backend, at_once=True)


def _source(acceptance: Acceptance, request: CreateShare) -> Row[Any] | None:
    """Return the share of the snapshot to copy, or None; lock the snapshot until the commit."""
    if request.snapshot_id is None:
        return None
    snapshot = lookup.snapshot(acceptance.connection, request.snapshot_id, acceptance.project_id)
    lookup.check_status(snapshot, ObjectKind.SNAPSHOT, "available", to="create a share from")
    if request.size < snapshot.size:
        raise InvalidRequest(
            f"A share from snapshot {snapshot.id} needs at least its {snapshot.size} GiB.",
            object=ObjectKind.SNAPSHOT.ref(snapshot.id),
            field="size",
        )
    return acceptance.connection.execute(
        select(tables.shares).where(tables.shares.c.id == snapshot.share_id)
    ).one()


def _network(
    acceptance: Acceptance,
    request: CreateShare,
    source: Row[Any] | None,
    share_type: Row[Any] | None,
) -> Row[Any] | None:
    """Return the share's network, or None; lock it until the commit."""
    if source is None:
        return lookup.share_network(
            acceptance.connection,
            acceptance.project_id,
            named=request.share_network_id,
            configured=acceptance.config.default_share_network_id,
            extra_specs=share_type.extra_specs if share_type is not None else {},
        )
    if request.share_network_id not in {None, source.share_network_id}:
        raise InvalidRequest(
            f"A share from snapshot {request.snapshot_id} is created on its share network; "
            f"leave share_network_id out.",
            object=ObjectKind.SHARE.ref(source.id),
            field="share_network_id",
        )
    if source.share_network_id is None:
        return None
    return lookup.share_network(
        acceptance.connection, acceptance.project_id, named=source.share_network_id
    )


def _serving(acceptance: Acceptance, network: Row[Any] | None, size: int) -> frozenset[str]:
    """Return backends with a share server of the network that has room or is about to be built."""
    pools = acceptance.pools
    if network is None or not pools.pool_table().has_choice:
        return frozenset()
    config = acceptance.config
    standing = servers.standing(
        acceptance.connection, acceptance.project_id, network.id, network.security_key
    )
    serving = {
        row.backend
        for row in standing
        if row.backend in config.backends
        and limits_of(config, row.backend).admit(size, shares=row.shares, gib=row.gib)
    }
    lately = pools.lately(acceptance.project_id, network.id)
    if lately is not None and all(row.backend != lately for row in standing):
        serving.add(lately)  # its server has no row yet
    return frozenset(serving)


def _check_size(acceptance: Acceptance, size: int, field: str) -> None:
    largest = acceptance.config.engine.max_share_size
    if size > largest:
        raise InvalidRequest(
            f"{field} is {size} GiB; at most {largest} GiB can be asked for.", field=field
        )


def _place(acceptance: Acceptance, wanted: PlacementRequest) -> Pool:
    """Choose a pool from the cached table and reserve capacity; choose again after a conflict.

    The table is read anew before a request is refused: a pool may have become free, or enabled.
    """
    ratio = acceptance.config.engine.max_over_subscription_ratio
    for attempt in range(_PLACEMENT_ROUNDS):
        snapshot = acceptance.pools.pool_table(fresh=attempt > 0)
        conflict = False
        for pool in candidates(replace(wanted, now=snapshot.now), snapshot):
            if reserve(acceptance.connection, pool, wanted.size, ratio):
                acceptance.pools.chosen(pool, wanted.size)
                return pool
            acceptance.pools.invalidate(pool)
            conflict = True
        if attempt > 0 and not conflict:
            raise no_capacity(wanted, refusals(wanted, snapshot))
    raise no_capacity(wanted, {"every pool": "was taken by other requests meanwhile"})


def delete(acceptance: Acceptance) -> Begin:
    """Supersede queued operations, cancel a create, and begin (or queue) the deletion."""
    connection = acceptance.connection
    row = lookup.share(connection, acceptance.request.share_id, acceptance.project_id)
    if row.status == ShareStatus.DELETING:
        raise Conflict(
            f"The share {row.id} is being deleted already.", object=ObjectKind.SHARE.ref(row.id)
        )
    _check_unused(acceptance, row)
    if row.status == ShareStatus.CREATING:
        _cancel_create(acceptance, row)
    because = f"The share {row.id} is being deleted."
    acceptance.dispatches.extend(
        repairs.cancel(connection, acceptance.config, ("share", row.id), because)
    )
    # The live operation is locked by now, so its end cannot start a queued one meanwhile.
    superseded = {
        "code": str(ErrorCode.SUPERSEDED),
        "message": f"The share {row.id} was deleted before this operation began.",
        "object": ObjectKind.SHARE.ref(row.id),
        "field": "",
    }
    republish_after = acceptance.config.engine.lease
    ended = operations.supersede(
        connection, "share", row.id, superseded, store_again=republish_after
    )
    acceptance.ended.extend((operation_id, None, superseded) for operation_id in ended)
    shares.set_share(connection, row.id, ShareStatus.DELETING)
    return Begin("delete_share", ("share", row.id), row.backend)


def _check_unused(acceptance: Acceptance, row: Row[Any]) -> None:
    count = snapshots.snapshots_of(acceptance.connection, row.id)
    if count:
        raise Conflict(
            f"The share {row.id} has {count} snapshot{'s' if count > 1 else ''}; delete "
            f"{'them' if count > 1 else 'it'} first.",
            object=ObjectKind.SHARE.ref(row.id),
        )


def _cancel_create(acceptance: Acceptance, row: Row[Any]) -> None:
    o = operations_table.c
    live = acceptance.connection.execute(
        select(o.id).where(
            o.resource_kind == "share",
            o.resource_id == row.id,
            o.state == OperationState.RUNNING.value,
        )
    ).first()
    if live is None:
        return
    cancelled = {
        "code": str(ErrorCode.CANCELLED),
        "message": f"The share {row.id} was deleted while it was being created.",
        "object": ObjectKind.SHARE.ref(row.id),
        "field": "",
    }
    acceptance.dispatches.extend(
        operations.request_cancel(
            acceptance.connection,
            live.id,
            cancelled,
            republish_after=acceptance.config.engine.lease,
        )
    )


def extend(acceptance: Acceptance) -> Begin:
    """Begin (or queue) the extension of a share; its first step reserves the capacity."""
    request: ExtendShare = acceptance.request
    _check_size(acceptance, request.new_size, "new_size")
    limits = quotas.hold(acceptance)
    row = lookup.share(acceptance.connection, request.share_id, acceptance.project_id)
    lookup.check_status(row, ObjectKind.SHARE, "available", "extending", to="extend")
    if request.new_size <= row.size:
        raise InvalidRequest(
            f"The share {row.id} has {row.size} GiB; new_size must be larger.",
            object=ObjectKind.SHARE.ref(row.id),
            field="new_size",
        )
    _check_growth(acceptance, limits, row)
    return Begin("extend_share", ("share", row.id), row.backend)


def _check_growth(acceptance: Acceptance, limits: Limits, row: Row[Any]) -> None:
    """Check the quota for the GiB that an extend adds to the size after earlier extends."""
    if not limits:
        return
    more = acceptance.request.new_size - row.size - growth_of(acceptance.connection, row.id)
    if more > 0:
        quotas.check(
            acceptance,
            limits,
            {QuotaResource.GIGABYTES: more},
            share_type_id=row.share_type_id,
            field="new_size",
        )
