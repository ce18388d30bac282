"""Tests of the tests: one safeguard taken out of a running deployment, and which cells see it.

Nothing of this is in the product: the launcher replaces the one function in its own process,
before it forks the workers, and runs everything else as it is.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import worker.engine.runner
from worker.db.operations import statements
from worker.db.operations import store as operations
from worker.db.share_servers import store as servers
from worker.db.tables.main import operations as operations_table
from worker.drivers.fake import FakeShareDriver
from worker.engine.heartbeat import Lease
from worker.engine.saga import Action
from worker.model import Phase, ServerStatus
from worker.tasks import shares
from worker.tasks.periodic import reconciler as reconcile


@dataclass(frozen=True, slots=True)
class Sabotage:
    """What takes the safeguard out, the cells that must fail without it, and as what."""

    apply: Callable[[], None]
    cells: tuple[str, ...]
    kinds: frozenset[str]


def _swap(owner: Any, name: str, other: Any) -> None:
    """What is not there any more by that name cannot be taken out: the test has to follow."""
    assert hasattr(owner, name), f"{owner.__name__} has no {name}"
    setattr(owner, name, other)


def _no_fence() -> None:
    """Whoever once had a lease writes with it for ever."""

    def held(operation_id: Any, _fence: Any) -> Any:
        return (operations_table.c.id == operation_id,)

    for module in (statements, operations):
        _swap(module, "held", held)


def _random_names() -> None:
    """Each attempt calls what it makes something else."""
    made = FakeShareDriver.create_share

    def create_share(self: Any, context: Any, share: Any, server: Any) -> Any:
        return made(self, context, replace(share, id=str(uuid.uuid4())), server)

    _swap(FakeShareDriver, "create_share", create_share)


def _no_reconciler() -> None:
    """Nobody takes up again what is overdue."""
    _swap(reconcile.Reconciler, "_redrive_overdue", lambda _self: 0)


def _no_undo_of_the_failed_step() -> None:
    """What failed is taken for not begun: undoing starts with the step before it."""
    compensation = shares.delete_share.run

    def delete_share(job: Any) -> Any:
        return None if job.operation.undoing else compensation(job)

    _replace(shares.delete_share, delete_share)


def _replace(action: Action, run: Callable[[Any], Any]) -> None:
    object.__setattr__(action, "run", run)


def _no_guard() -> None:
    """Nobody looks whether the lease is still held before acting outside."""
    _swap(Lease, "guard", lambda _self: None)


def _no_dispatch_number() -> None:
    """Any message of an operation is as good as the newest one."""
    claim = operations.claim

    def claim_whatever(
        connection: Any, operation_id: str, number: int, *args: Any, **kw: Any
    ) -> Any:
        found = operations.find(connection, operation_id)
        newest = number if found is None else found.dispatch
        return claim(connection, operation_id, newest, *args, **kw)

    _swap(operations, "claim", claim_whatever)
    _swap(worker.engine.runner, "_unclaimed", _unclaimed_whatever)


def _unclaimed_whatever(runtime: Any, action: Action, operation_id: str, _number: int) -> bool:
    with worker.engine.runner.reading(runtime.engine) as connection:
        operation = operations.find(connection, operation_id)
    if operation is None or operation.phase is not Phase.QUEUED:
        return False
    saga = runtime.sagas.find(operation.saga, operation.saga_version)
    assert saga is not None, "every process of the matrix is of one release"
    previous = saga.previous(operation.task, undoing=operation.undoing)
    return previous is not None and previous.name == action.name


def _no_reference_count() -> None:
    """Whoever goes takes the server along, whoever else is on it."""
    release = servers.release

    def last_or_not(
        connection: Any, share_id: str, *, deleter_id: str | None, idle_after: bool = False
    ) -> Any:
        row = release(connection, share_id, deleter_id=deleter_id, idle_after=idle_after)
        if row is None or row.status != ServerStatus.ACTIVE:
            return row
        return connection.execute(
            servers.update(servers.share_servers)
            .where(servers.share_servers.c.id == row.id)
            .values(status=ServerStatus.DELETING.value, deleter_id=deleter_id)
            .returning(*servers.share_servers.c)
        ).one()

    _swap(servers, "release", last_or_not)


def _cell(apply: Callable[[], None], cell: str, *kinds: str) -> Sabotage:
    return Sabotage(apply, (cell,), frozenset(kinds))


SABOTAGES: Final = {
    "fence": _cell(_no_fence, "create/flat:get_share_server.before_commit:stop", "stuck"),
    "names": _cell(_random_names, "create/flat:create_share.after_effect:kill", "leaked"),
    "reconciler": _cell(_no_reconciler, "create/flat:create_share.before:kill", "stuck"),
    "undo": _cell(
        _no_undo_of_the_failed_step, "create-undone/flat:create_share.failed:kill", "stuck"
    ),
    "guard": _cell(_no_guard, "create/flat:get_share_server.outside:stop-long", "leaked"),
    "number": _cell(
        _no_dispatch_number, "create/flat:allocate_network.after_commit:stale", "duplicated"
    ),
    "references": _cell(_no_reference_count, "join-undone/flat:delete_share.before:kill", "stuck"),
}
