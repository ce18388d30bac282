"""What an operator's giving up means: the rows let go of what could not be undone or deleted.

Nothing is done outside. What is left there has no live row any more, so the audit finds it.
"""

from __future__ import annotations

from worker.db import shares, snapshots
from worker.db.share_servers import store as servers
from worker.engine.job import Writing
from worker.errors import Fatal
from worker.tasks.servers import give_back
from worker.tasks.shares import forget


def let_go(writing: Writing) -> list[str]:
    """Let go of what only this operation kept; return what may be left outside."""
    operation = writing.operation
    left = [] if operation.verb == "deny_access" else _objects(writing)
    if operation.verb == "create_share" or operation.resource_kind == "share_server":
        row = give_back(writing)
        if row is not None:
            servers.remove(writing.connection, row.id)
            known = f" ({row.server_id})" if row.server_id else ""
            left.append(f"share server {row.id}{known} with its addresses")
    if operation.verb == "create_share":
        shares.share_failed(
            writing.connection, operation.resource_id, dict(operation.error or {}), undone=True
        )
    return left


def _objects(writing: Writing) -> list[str]:
    """The share or snapshot; a row that was to be deleted goes."""
    operation, connection = writing.operation, writing.connection
    snapshot_id = operation.payload.get("snapshot_id")
    if operation.verb in {"create_snapshot", "delete_snapshot"} and snapshot_id:
        if not operation.undoing:
            snapshots.remove_snapshot(connection, snapshot_id)
        return [f"snapshot {snapshot_id} of share {operation.resource_id}"]
    if operation.resource_kind != "share":
        return []
    if operation.verb == "delete_share":
        try:
            forget(writing, shares.share_row(connection, operation.resource_id))
        except Fatal:
            return []  # another delete went through meanwhile
    return [f"share {operation.resource_id}"]
