"""Queries of quotas: limit, usage and reservation of each resource."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, or_, select

from scheduler.queries.base import is_administrator, missing
from scheduler.requests.quotas import ShowQuota
from worker.config import Config
from worker.db import quotas
from worker.db.quotas import WHOLE_PROJECT
from worker.db.tables.main import share_types
from worker.errors import Forbidden, ObjectKind


def show_quota(connection: Connection, request: ShowQuota, config: Config) -> dict[str, Any]:
    """Return the quota of a project; only administrators see another project's."""
    project_id = request.project_id or request.context.project_id
    if project_id != request.context.project_id and not is_administrator(request.context):
        raise Forbidden(
            "Only the role 'admin' may see the quota of another project.", field="project_id"
        )
    share_type_id = WHOLE_PROJECT
    if request.share_type is not None:
        t = share_types.c
        named = or_(t.id == request.share_type, t.name == request.share_type)
        found = connection.execute(select(t.id).where(named)).first()
        if found is None:
            raise missing(ObjectKind.SHARE_TYPE, request.share_type, "share_type")
        share_type_id = found.id
    return quotas.document(connection, project_id, share_type_id, config.quotas.maximums)
