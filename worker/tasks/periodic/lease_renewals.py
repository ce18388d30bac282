"""Leases of DHCP servers, renewed at half their time for as long as the share server lives.

The reconciler asks a worker of the backend's group for what is due; that worker claims each share
server's leases and renews them through the network helper. A message that is lost is asked for
again, and a second one for the same lease finds nothing to claim.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from sqlalchemy import ColumnElement, and_, update

from worker.db.core.engine import db_now, reading, transaction
from worker.db.networks import dhcp_leases as leases
from worker.db.share_servers import store as servers
from worker.db.tables.main import share_servers
from worker.engine.job import Runtime
from worker.errors import ErrorCode, LeaseLost, StepError
from worker.model import RequestContext, ServerStatus, ShareServer

TASK = "renew_leases"
ASK_AGAIN = 30.0
"""After how many seconds a renewal that nobody began is asked for again."""
CLAIM_SECONDS = 45.0
"""How long one share server's leases may take. Whoever takes over from a worker that died waits
as long: that is less than what is left of the shortest leases, of two minutes, at half time."""
TIMEOUT = 300.0
SERVERS_A_MESSAGE = 50

Send = Callable[[str, Sequence[str]], None]
"""Sends a renewal of a backend's share servers to its worker group."""

_log = logging.getLogger(__name__)


def ask_for_renewals(runtime: Runtime, send: Send) -> None:
    """Ask for the renewal of what is due, each by one reconciler only."""
    with transaction(runtime.engine) as connection:
        due = leases.ask(
            connection, again_after=ASK_AGAIN, limit=runtime.config.engine.redrive_batch
        )
    for backend, ids in sorted(due.items()):
        if backend not in runtime.config.backends:
            _log.warning("DHCP leases of backend %s are due, and it is not configured.", backend)
            continue
        for first in range(0, len(ids), SERVERS_A_MESSAGE):
            send(backend, ids[first : first + SERVERS_A_MESSAGE])


def renew_leases(runtime: Runtime, server_ids: Sequence[str]) -> None:
    """Renew the leases of share servers that are due and that nobody else is renewing.

    Once a share network's DHCP server was silent, its other share servers' leases are tried later
    without asking: each would cost the whole deadline, and other work waits behind this.
    """
    try:
        _renew(runtime, server_ids)
    finally:
        runtime.heartbeat.flush()  # its thread may not run: it starts with a process's first step


def _renew(runtime: Runtime, server_ids: Sequence[str]) -> None:
    ends = time.monotonic() + TIMEOUT - CLAIM_SECONDS
    silent: dict[str | None, StepError] = {}
    for server_id in server_ids:
        if time.monotonic() > ends:
            return  # the others are asked for again
        with reading(runtime.engine) as connection:
            server = servers.get(connection, server_id)
        if server is None or server.backend not in runtime.config.backends:
            continue
        began = time.monotonic()
        with transaction(runtime.engine) as connection:
            if not leases.claim(connection, server_id, CLAIM_SECONDS):
                continue
        network = server.share_network_id
        try:
            if network in silent:
                raise silent[network]
            context = RequestContext(
                project_id=server.project_id,
                guard=partial(_check, began + CLAIM_SECONDS),
            )
            runtime.manager(server.backend).renew_network(context, server)
        except StepError as error:
            if error.code is ErrorCode.BACKEND_UNAVAILABLE:
                silent[network] = error
            _not_renewed(runtime, server, error)
        except LeaseLost as lost:
            _log.warning("The renewal for share server %s stops: %s", server_id, lost.message)
        else:
            _renewed(runtime, server)


def _check(until: float) -> None:
    if time.monotonic() >= until:
        raise LeaseLost(f"It took longer than {CLAIM_SECONDS:.0f} s; another worker may be at it.")


def _renewed(runtime: Runtime, server: ShareServer) -> None:
    with transaction(runtime.engine) as connection:
        leases.renewed(connection, server.id)
        connection.execute(
            update(share_servers)
            .where(_is_active(server), share_servers.c.error.is_not(None))
            .values(error=None, updated_at=db_now())
        )
    runtime.heartbeat.count("dhcp_renewals_total:renewed")


def _not_renewed(runtime: Runtime, server: ShareServer, error: StepError) -> None:
    """It is tried again, and the share server shows why; more slowly once its time is over."""
    with transaction(runtime.engine) as connection:
        expired = leases.not_renewed(
            connection,
            server.id,
            pause_when_expired=runtime.config.engine.failed_undo_pause,
        )
        connection.execute(
            update(share_servers)
            .where(_is_active(server))
            .values(error=error.to_json(), updated_at=db_now())
        )
    runtime.heartbeat.count(f"dhcp_renewals_total:{'expired' if expired else 'failed'}")
    if expired:
        _log.error(
            "The DHCP leases of share server %s ran out; others may be given its addresses: %s",
            server.id,
            error.message,
        )
    else:
        _log.warning(
            "The DHCP leases of share server %s were not renewed: %s", server.id, error.message
        )


def _is_active(server: ShareServer) -> ColumnElement[bool]:
    return and_(
        share_servers.c.id == server.id, share_servers.c.status == ServerStatus.ACTIVE.value
    )
