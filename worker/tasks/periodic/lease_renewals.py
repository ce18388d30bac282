"""Renew DHCP leases at half their lifetime, for as long as their share server exists.

The reconciler sends the due renewals to the workers of the backend's group. A worker claims each
share server's leases and renews them through the network helper. If a message is lost, the
reconciler sends another; a second message for the same lease finds nothing to claim.
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
"""Seconds after which a renewal that no worker has begun is sent again."""
CLAIM_SECONDS = 45.0
"""Seconds that renewing one share server's leases may take. After a crash, the next worker waits as
long; the shortest leases, of two minutes, then still have some time left."""
TIMEOUT = 300.0
SERVERS_A_MESSAGE = 50

Send = Callable[[str, Sequence[str]], None]
"""Sends the ids of share servers whose leases are due to the worker group of their backend."""

_log = logging.getLogger(__name__)


def ask_for_renewals(runtime: Runtime, send: Send) -> None:
    """Send the renewals that are due; only one reconciler sends each of them."""
    with transaction(runtime.engine) as connection:
        due = leases.ask(
            connection, again_after=ASK_AGAIN, limit=runtime.config.engine.redrive_batch
        )
    for backend, ids in sorted(due.items()):
        if backend not in runtime.config.backends:
            _log.warning("DHCP leases of backend %s are due, but it is not configured.", backend)
            continue
        for first in range(0, len(ids), SERVERS_A_MESSAGE):
            send(backend, ids[first : first + SERVERS_A_MESSAGE])


def renew_leases(runtime: Runtime, server_ids: Sequence[str]) -> None:
    """Renew those leases of share servers that are due and not claimed by another worker.

    When a share network's DHCP server does not answer, the leases of the network's other share
    servers are postponed without asking it: each would take the whole time limit and delay other
    work.
    """
    try:
        _renew(runtime, server_ids)
    finally:
        runtime.heartbeat.flush()  # the heartbeat's thread starts with a process's first step


def _renew(runtime: Runtime, server_ids: Sequence[str]) -> None:
    ends = time.monotonic() + TIMEOUT - CLAIM_SECONDS
    silent: dict[str | None, StepError] = {}
    for server_id in server_ids:
        if time.monotonic() > ends:
            return  # the reconciler sends the others again
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
        raise LeaseLost(
            f"It took longer than {CLAIM_SECONDS:.0f} s; another worker may have claimed it."
        )


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
    """Write the error to the share server and postpone the renewal; longer for expired leases."""
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
            "The DHCP leases of share server %s expired; its addresses may be given to others: %s",
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
