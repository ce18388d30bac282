"""Close an operation by force: remove the rows of what could not be undone or deleted.

External systems are not touched. What is left there no longer has a live row, so the audit reports
it as an orphan.
"""

from __future__ import annotations

from worker.db import shares, snapshots
from worker.db.share_servers import store as servers
from worker.engine.job import StepTransaction
from worker.errors import Fatal
from worker.tasks.servers import release_reference
from worker.tasks.shares import forget


def force_close(tx: StepTransaction) -> list[str]:
    """Remove the rows that only this operation uses; name what may be left on external systems."""
    operation = tx.operation
    left = [] if operation.verb == "deny_access" else _objects(tx)
    if operation.verb == "create_share" or operation.resource_kind == "share_server":
        row = release_reference(tx)
        if row is not None:
            servers.remove(tx.connection, row.id)
            known = f" ({row.server_id})" if row.server_id else ""
            left.append(f"share server {row.id}{known} with its addresses")
    if operation.verb == "create_share":
        shares.share_failed(
            tx.connection, operation.resource_id, dict(operation.error or {}), undone=True
        )
    return left


def _objects(tx: StepTransaction) -> list[str]:
    """Name the operation's share or snapshot; remove its row if the operation was to delete it."""
    operation, connection = tx.operation, tx.connection
    snapshot_id = operation.payload.get("snapshot_id")
    if operation.verb in {"create_snapshot", "delete_snapshot"} and snapshot_id:
        if not operation.undoing:
            snapshots.remove_snapshot(connection, snapshot_id)
        return [f"snapshot {snapshot_id} of share {operation.resource_id}"]
    if operation.resource_kind != "share":
        return []
    if operation.verb == "delete_share":
        try:
            forget(tx, shares.share_row(connection, operation.resource_id))
        except Fatal:
            return []  # another delete has succeeded meanwhile
    return [f"share {operation.resource_id}"]
