"""What a run does for each verb: prepare, let the fault strike, ask, be judged, clear away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from tests.crash.matrix.cells import FLAT, SINGLE
from tests.crash.matrix.run import HARM_SECONDS, Run

SUCCEEDED: Final = {"succeeded"}
FAILED: Final = {"failed"}
_FAILS_FOR_GOOD: Final = {"create", "from-snapshot", "join", "snapshot", "extend", "allow"}
"""Verbs whose operation a fatal error ends; what destroys is tried on until it is done."""


async def play(run: Run) -> None:
    """One run from beginning to end; raises :class:`Broken`."""
    verb, fault = run.cell.verb, run.cell.fault
    asked = await _PLAYS[verb.action](run)
    expected = SUCCEEDED
    if verb.compensation_of or (fault == "fatal" and verb.name in _FAILS_FOR_GOOD):
        expected = FAILED
    await run.judged(dict.fromkeys(asked, expected) if isinstance(asked, list) else asked)
    if fault != "stop-long":
        run.go_on()
        await asyncio.sleep(HARM_SECONDS if fault in {"stop", "stale"} else 0)
        await run.rest()
        run.compare()
    await run.clear()
    if fault == "stop-long":
        run.go_on()
        await asyncio.sleep(HARM_SECONDS)
        run.compare()


async def _network(run: Run) -> dict[str, Any]:
    """The share network of the run's mode; none in single_svm."""
    mode = run.cell.verb.mode
    if mode == SINGLE:
        return {}
    options = {"flat_network_ip_pool": ["10.0.0.0/28"]} if mode == FLAT else {"managed": True}
    made = await run.ask("create_share_network", **options)
    return {"share_network_id": made["id"]}


async def _share(run: Run, where: dict[str, Any]) -> str:
    made = await run.ask("create_share", size=1, share_type=run.cell.verb.mode, **where)
    return str(made["id"])


async def _create(run: Run) -> list[str]:
    where = await _network(run)
    run.arm()
    asked = await run.request("create_share", size=1, share_type=run.cell.verb.mode, **where)
    if run.cell.fault == "stale":
        await run.until(run.has_struck, "void", "both faults strike")
        run.go_on()
    return [asked]


async def _cancel(run: Run) -> dict[str, set[str]]:
    """A delete overtakes the create: while its server is made (flat), or in its last step."""
    where = await _network(run)
    run.arm()
    action = "get_share_server" if run.cell.verb.mode == FLAT else "create_share"
    holding = run.lane.directory / f"{run.project}.hold"
    holding.touch()
    # More than one: on a busy machine the first attempt's time may run out meanwhile.
    held = [run.token(f"{action}.before", f"hold {holding}", 90 + number) for number in range(4)]
    create = await run.request("create_share", size=1, share_type=run.cell.verb.mode, **where)
    await run.until(lambda: not held[0].exists(), "void", f"{action} is begun")
    (share,) = run.lane.external.rows(
        "SELECT id FROM shares WHERE project_id = :own", own=run.project
    )
    delete = await run.request("delete_share", share_id=share["id"])
    for file in (*held, holding):
        file.unlink(missing_ok=True)
    return {create: {"cancelled", "failed"}, delete: SUCCEEDED}


async def _join(run: Run) -> list[str]:
    where = await _network(run)
    await _share(run, where)
    run.arm()
    return [await run.request("create_share", size=1, share_type=run.cell.verb.mode, **where)]


async def _from_snapshot(run: Run) -> list[str]:
    where = await _network(run)
    share_id = await _share(run, where)
    snapshot = await run.ask("create_snapshot", share_id=share_id)
    run.arm()
    mode = run.cell.verb.mode
    return [await run.request("create_share", size=1, share_type=mode, snapshot_id=snapshot["id"])]


def _on_a_share(verb: str, **fields: Any) -> Callable[[Run], Awaitable[list[str]]]:
    """A verb that needs no more than a share."""

    async def ask(run: Run) -> list[str]:
        share_id = await _share(run, await _network(run))
        run.arm()
        return [await run.request(verb, share_id=share_id, **fields)]

    return ask


async def _deny(run: Run) -> list[str]:
    share_id = await _share(run, await _network(run))
    rule = await run.ask("allow_access", share_id=share_id, access_to="10.0.0.9")
    run.arm()
    return [await run.request("deny_access", share_id=share_id, access_id=rule["id"])]


async def _delete_snapshot(run: Run) -> list[str]:
    share_id = await _share(run, await _network(run))
    snapshot = await run.ask("create_snapshot", share_id=share_id)
    run.arm()
    return [await run.request("delete_snapshot", snapshot_id=snapshot["id"])]


async def _ensure(run: Run) -> list[str]:
    """What a failure for good has left is made good by asking once more."""
    await _share(run, await _network(run))
    (server,) = run.lane.external.rows(
        "SELECT id FROM share_servers WHERE project_id = :own", own=run.project
    )
    run.arm()
    for _ in range(2 if run.cell.fault == "fatal" else 1):
        before = set(run.operations)
        await run.request("ensure_share_servers", admin=True, share_server_id=server["id"])
        await run.until(run.has_struck, "void", "the fault strikes")
        await run.rest()
    return sorted(run.operations.keys() - before)


async def _make_network(run: Run) -> list[str]:
    run.arm()
    return [await run.request("create_share_network", flat_network_ip_pool=["10.0.0.0/28"])]


async def _delete_network(run: Run) -> list[str]:
    where = await _network(run)
    run.arm()
    return [await run.request("delete_share_network", **where)]


_PLAYS: Final[dict[str, Callable[[Run], Awaitable[Any]]]] = {
    "create": _create,
    "cancel": _cancel,
    "join": _join,
    "from-snapshot": _from_snapshot,
    "delete": _on_a_share("delete_share"),
    "clean-up": _on_a_share("delete_share"),
    "extend": _on_a_share("extend_share", new_size=2),
    "allow": _on_a_share("allow_access", access_to="10.0.0.9"),
    "deny": _deny,
    "ensure": _ensure,
    "snapshot": _on_a_share("create_snapshot"),
    "delete-snapshot": _delete_snapshot,
    "network": _make_network,
    "delete-network": _delete_network,
}
