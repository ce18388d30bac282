"""Handlers of quota requests, and the check of every request that creates or extends an object."""

from __future__ import annotations

from collections.abc import Mapping

from scheduler.acceptance import lookup
from scheduler.acceptance.accept import Acceptance
from scheduler.requests.quotas import SetQuota, UnsetQuota
from worker.db import quotas
from worker.db.quotas import WHOLE_PROJECT, Limits
from worker.engine.accept import Completed
from worker.errors import ObjectKind, QuotaExceeded
from worker.model import QuotaResource

_UNITS: Mapping[QuotaResource, str] = {
    QuotaResource.SHARES: "shares",
    QuotaResource.GIGABYTES: "GiB of shares",
    QuotaResource.SNAPSHOTS: "snapshots",
    QuotaResource.SNAPSHOT_GIGABYTES: "GiB of snapshots",
    QuotaResource.SHARE_NETWORKS: "share networks",
}


def set_limits(acceptance: Acceptance) -> Completed:
    """Set limits of a project, in all or of one share type."""
    request: SetQuota = acceptance.request
    connection, project_id = acceptance.connection, request.project_id
    share_type_id = _share_type_id(acceptance, request)
    quotas.hold(connection, project_id)
    quotas.set_limits(connection, project_id, share_type_id, request.maximums)
    return _completed(acceptance, project_id, share_type_id)


def unset_limits(acceptance: Acceptance) -> Completed:
    """Remove the limits of a project, so that the defaults apply."""
    request: UnsetQuota = acceptance.request
    share_type_id = _share_type_id(acceptance, request)
    quotas.hold(acceptance.connection, request.project_id)
    quotas.unset_limits(acceptance.connection, request.project_id, share_type_id)
    return _completed(acceptance, request.project_id, share_type_id)


def _share_type_id(acceptance: Acceptance, request: UnsetQuota) -> str:
    if request.share_type is None:
        return WHOLE_PROJECT
    return str(lookup.share_type(acceptance.connection, request.share_type).id)


def _completed(acceptance: Acceptance, project_id: str, share_type_id: str) -> Completed:
    document = quotas.document(
        acceptance.connection, project_id, share_type_id, acceptance.config.quotas.maximums
    )
    return Completed((ObjectKind.QUOTA, project_id), document)


def hold(acceptance: Acceptance) -> Limits:
    """Return the project's limits; if it has any, lock its usage until the commit.

    Call it before any other row is locked.
    """
    found = quotas.limits(
        acceptance.connection, acceptance.project_id, acceptance.config.quotas.maximums
    )
    if found:
        quotas.hold(acceptance.connection, acceptance.project_id)
    return found


def check(
    acceptance: Acceptance,
    limits: Limits,
    more: Mapping[QuotaResource, int],
    *,
    share_type_id: str | None = None,
    field: str = "",
) -> None:
    """Refuse a request that would exceed the project's limits.

    ``limits`` come from :func:`hold`, in the same transaction; ``more`` is what the request adds
    to each resource. Raises :class:`~worker.errors.QuotaExceeded`.
    """
    for scope in dict.fromkeys((WHOLE_PROJECT, share_type_id or WHOLE_PROJECT)):
        limited = {name: limits[scope, name] for name in more if (scope, name) in limits}
        if not limited:
            continue
        usage = quotas.usage(acceptance.connection, acceptance.project_id, scope)
        for resource, maximum in limited.items():
            has = usage[resource]
            if has.total + more[resource] > maximum:
                of_type = f" of share type {scope}" if scope else ""
                raise QuotaExceeded(
                    f"Project {acceptance.project_id} may have {maximum} {_UNITS[resource]}"
                    f"{of_type}; it has {has.in_use}, {has.reserved} are reserved, and "
                    f"{more[resource]} more are requested. Delete objects, or ask an "
                    f"administrator for a larger quota.",
                    object=ObjectKind.QUOTA.ref(acceptance.project_id),
                    field=field,
                )
