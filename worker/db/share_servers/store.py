"""Share servers and the references of shares to them (docs/explanation/engine.md, rules 8 and 9).

A share joins a server by one conditional update on a server that has room; a clean-up is one on a
server without references; a server never leaves the status ``deleting`` for a live one. Counters
and reference rows change together, and a constraint keeps the counters from becoming negative.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    Connection,
    Integer,
    Row,
    String,
    and_,
    bindparam,
    case,
    delete,
    insert,
    or_,
    select,
    update,
)

from worker.db import audits
from worker.db.core.engine import db_now, insert_into
from worker.db.core.prepared import Prepared
from worker.db.documents import network_info, plain, server_details
from worker.db.share_servers.limits import Limits, has_room
from worker.db.tables.main import share_server_failures, share_server_refs, share_servers
from worker.errors import ErrorCode, Fatal, ObjectKind
from worker.model import (
    SERVER_TRANSITIONS,
    NetworkInfo,
    OwnerKind,
    ServerStatus,
    ShareServer,
    ShareServerDetails,
    sources,
)

_s = share_servers.c
_r = share_server_refs.c
_f = share_server_failures.c
_BUILDING: Final = (ServerStatus.NEW.value, ServerStatus.BUILDING.value)
_LIVE: Final = (*_BUILDING, ServerStatus.ACTIVE.value)
_JOIN_ROUNDS: Final = 5


@dataclass(frozen=True, slots=True)
class ServerKey:
    """Properties that share servers must have in common for a share to be on any of them."""

    project_id: str
    share_network_id: str
    backend: str
    security_key: str = ""

    @property
    def digest(self) -> str:
        """The key as one short string, for :attr:`waits_for` and the rows of failures."""
        parts = (self.project_id, self.share_network_id, self.backend, self.security_key)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]

    @property
    def waits_for(self) -> str:
        """The key for operations that wait until a server of this key is built."""
        return f"share_server:{self.digest}"


@dataclass(frozen=True, slots=True)
class Joined:
    """Server that a share refers to, and whether the share's operation is its builder."""

    server: ShareServer
    is_builder: bool


SEEN: Final = (
    *(_s.id, _s.project_id, _s.backend, _s.share_network_id, _s.status),
    *(_s.network_info, _s.details, _s.server_id, _s.security_key),
)
"""The columns that make a :class:`~worker.model.ShareServer`."""


def server_of(row: Row[Any], prefix: str = "") -> ShareServer:
    """Return the value of a server's row, as drivers see it; its labels begin with ``prefix``."""
    values = {column.name: getattr(row, prefix + column.name) for column in SEEN}
    values["status"] = ServerStatus(values["status"])
    values["network_info"] = network_info(values["network_info"])
    values["details"] = server_details(values["details"])
    return ShareServer(**values)


def key_of(row: Row[Any]) -> ServerKey:
    """Return the key of a server's row."""
    return ServerKey(row.project_id, row.share_network_id, row.backend, row.security_key)


_STANDING = Prepared(
    select(_s.backend, _s.shares, _s.gib).where(
        _s.project_id == bindparam("project"),
        _s.share_network_id == bindparam("network"),
        _s.security_key == bindparam("security"),
        _s.status.in_(_LIVE),
    )
)


def standing(
    connection: Connection, project_id: str, share_network_id: str, security_key: str
) -> Sequence[Row[Any]]:
    """Return ``backend``, ``shares`` and ``gib`` of the live servers of a share network."""
    return _STANDING.all(
        connection, project=project_id, network=share_network_id, security=security_key
    )


_GET = Prepared(select(share_servers).where(_s.id == bindparam("server")))


def get(connection: Connection, server_id: str) -> ShareServer | None:
    """Return a share server, or None."""
    row = _GET.first(connection, server=server_id)
    return None if row is None else server_of(row)


_REFERRED = Prepared(
    select(share_servers)
    .join(share_server_refs, _r.share_server_id == _s.id)
    .where(_r.share_id == bindparam("share"))
)


def referred(connection: Connection, share_id: str) -> Row[Any] | None:
    """Return the row of the server that a share refers to, or None."""
    return _REFERRED.first(connection, share=share_id)


_REFER = Prepared(
    insert(share_server_refs).values(
        share_id=bindparam("share"),
        share_server_id=bindparam("server"),
        operation_id=bindparam("operation"),
        gib=bindparam("size"),
    )
)


def join(
    connection: Connection,
    key: ServerKey,
    *,
    share_id: str,
    gib: int,
    operation_id: str,
    accepted_at: float,
    limits: Limits,
    tolerated_failures: int,
    preferred: str = "",
) -> Joined | None:
    """Let a share refer to a live server that has room, or to a new one that this operation builds.

    Of several servers with room, the one with the id ``preferred`` is taken. Returns None when all
    live servers are full and another one is being built: wait for ``key.waits_for``. Repeated
    after a crash, it finds the reference from before. Raises :class:`~worker.errors.Fatal` with
    the last builder's error when at least ``tolerated_failures`` builders in a row have failed,
    the last of them after this operation was accepted.
    """
    row = referred(connection, share_id)
    for _ in range(_JOIN_ROUNDS):
        if row is not None:
            break
        row = _take_room(connection, key, gib, limits, preferred)
        if row is None:
            _check_failures(connection, key, accepted_at, tolerated_failures)
            row = _insert(connection, key, gib, operation_id)
        if row is not None:
            _REFER.run(connection, share=share_id, server=row.id, operation=operation_id, size=gib)
    if row is None:
        return None
    building = row.status in _BUILDING
    return Joined(server_of(row), building and row.builder_id == operation_id)


def _taking_room() -> Prepared:
    room = and_(
        _s.status.in_(_LIVE),
        has_room(
            bindparam("size"),
            _s.shares,
            _s.gib,
            bindparam("most", type_=Integer),
            bindparam("most_gib", type_=Integer),
        ),
    )
    candidate = (
        select(_s.id)
        .where(
            _s.project_id == bindparam("project"),
            _s.share_network_id == bindparam("network"),
            _s.backend == bindparam("of_backend"),
            _s.security_key == bindparam("security"),
            room,
        )
        .order_by(
            case((_s.id == bindparam("preferred"), 0), else_=1),
            case((_s.status == ServerStatus.ACTIVE.value, 0), else_=1),
            _s.created_at,
        )
        .limit(1)
        .with_for_update()
        .scalar_subquery()
    )
    return Prepared(
        update(share_servers)
        .where(_s.id == candidate, room)
        .values(
            shares=_s.shares + 1,
            gib=_s.gib + bindparam("size"),
            idle_since=None,
            updated_at=db_now(),
        )
        .returning(*share_servers.c)
    )


_TAKE_ROOM = _taking_room()


def _take_room(
    connection: Connection, key: ServerKey, gib: int, limits: Limits, preferred: str
) -> Row[Any] | None:
    return _TAKE_ROOM.first(
        connection,
        project=key.project_id,
        network=key.share_network_id,
        of_backend=key.backend,
        security=key.security_key,
        size=gib,
        most=limits.shares,
        most_gib=limits.gib,
        preferred=preferred,
    )


def _insert(connection: Connection, key: ServerKey, gib: int, operation_id: str) -> Row[Any] | None:
    return connection.execute(
        insert_into(connection, share_servers)
        .values(
            id=str(uuid.uuid4()),
            project_id=key.project_id,
            share_network_id=key.share_network_id,
            backend=key.backend,
            security_key=key.security_key,
            status=ServerStatus.NEW.value,
            builder_id=operation_id,
            shares=1,
            gib=gib,
            created_at=db_now(),
            updated_at=db_now(),
        )
        .on_conflict_do_nothing()
        .returning(*share_servers.c)
    ).first()


def allocated(connection: Connection, server_id: str, info: NetworkInfo) -> None:
    """Store the addresses that a server's builder has allocated."""
    connection.execute(
        update(share_servers)
        .where(_s.id == server_id, _s.status == ServerStatus.NEW.value)
        .values(status=ServerStatus.BUILDING.value, network_info=plain(info), updated_at=db_now())
    )


def built(connection: Connection, server_id: str, details: ShareServerDetails) -> ServerKey:
    """Record that a server is built and serves; forget the failures of earlier builders."""
    row = connection.execute(
        update(share_servers)
        .where(_s.id == server_id, _s.status == ServerStatus.BUILDING.value)
        .values(
            status=ServerStatus.ACTIVE.value,
            server_id=details.server_id,
            details=plain(details),
            updated_at=db_now(),
        )
        .returning(*share_servers.c)
    ).first()
    if row is None:
        raise Fatal(
            f"The share server {server_id} is not being built any more.",
            object=ObjectKind.SHARE_SERVER.ref(server_id),
            code=ErrorCode.SHARE_SERVER_FAILED,
        )
    key = key_of(row)
    connection.execute(delete(share_server_failures).where(_f.key == key.digest))
    return key


def remember(connection: Connection, builder_id: str, server_id: str) -> None:
    """Store the id of the machine that a failed attempt created in the external system."""
    connection.execute(
        update(share_servers)
        .where(_s.builder_id == builder_id, _s.status.in_(_BUILDING))
        .values(server_id=server_id, updated_at=db_now())
    )


_DEREFER = Prepared(
    delete(share_server_refs)
    .where(_r.share_id == bindparam("share"))
    .returning(_r.share_server_id, _r.gib)
)


def _releasing(values: Mapping[str, Any]) -> Prepared:
    return Prepared(
        update(share_servers)
        .where(_s.id == bindparam("server"))
        .values(
            shares=_s.shares - 1,
            gib=_s.gib - bindparam("size"),
            updated_at=db_now(),
            **values,
        )
        .returning(*share_servers.c)
    )


_LAST = and_(_s.shares == 1, _s.status == ServerStatus.ACTIVE.value)
_RELEASE_OR_IDLE = _releasing({"idle_since": case((_LAST, db_now()), else_=_s.idle_since)})
_RELEASE_OR_DELETE = _releasing(
    {
        "status": case((_LAST, ServerStatus.DELETING.value), else_=_s.status),
        "deleter_id": case((_LAST, bindparam("deleter", type_=String)), else_=_s.deleter_id),
    }
)


def release(
    connection: Connection, share_id: str, *, deleter_id: str | None, idle_after: bool = False
) -> Row[Any] | None:
    """Release a share's reference; return the server's row, or None if there was no reference.

    If it was the last one, the server becomes ``deleting`` with ``deleter_id`` as its deleter;
    with ``idle_after`` it becomes idle instead, and a clean-up deletes it later.
    """
    reference = _DEREFER.first(connection, share=share_id)
    if reference is None:
        return None
    given = {"server": reference.share_server_id, "size": reference.gib}
    if idle_after:
        row = _RELEASE_OR_IDLE.first(connection, **given)
    else:
        row = _RELEASE_OR_DELETE.first(connection, deleter=deleter_id, **given)
    assert row is not None, "a server that is referred to is not removed"
    return row


def resize(connection: Connection, share_id: str, size: int, limits: Limits | None = None) -> bool:
    """Change the GiB that a share counts on its server; False when there is no room for it.

    Without ``limits`` there is always room. A share that is alone on its server may have any size,
    and one without a server needs no room.
    """
    reference = connection.execute(
        select(_r.share_server_id, _r.gib).where(_r.share_id == share_id).with_for_update()
    ).first()
    if reference is None or reference.gib == size:
        return True
    more = size - reference.gib
    fits = [_s.id == reference.share_server_id]
    if limits is not None and limits.gib and more > 0:
        fits.append(or_(_s.gib + more <= limits.gib, _s.shares == 1))
    changed = connection.execute(
        update(share_servers).where(*fits).values(gib=_s.gib + more, updated_at=db_now())
    )
    if changed.rowcount == 0:
        return False
    connection.execute(update(share_server_refs).where(_r.share_id == share_id).values(gib=size))
    return True


def fail_build(connection: Connection, operation_id: str) -> Row[Any] | None:
    """Mark the server that an operation builds ``deleting``, with the operation as its deleter.

    All references to it are removed. Return its row; None when the operation is building no
    server.
    """
    row = connection.execute(
        update(share_servers)
        .where(_s.builder_id == operation_id, _s.status.in_(_BUILDING))
        .values(
            status=ServerStatus.DELETING.value,
            deleter_id=operation_id,
            shares=0,
            gib=0,
            updated_at=db_now(),
        )
        .returning(*share_servers.c)
    ).first()
    if row is not None:
        connection.execute(delete(share_server_refs).where(_r.share_server_id == row.id))
    return row


def count_failure(connection: Connection, key: ServerKey, error: Mapping[str, str]) -> int:
    """Count one more failed builder in a row for a key; return their number."""
    statement = insert_into(connection, share_server_failures).values(
        key=key.digest, failures=1, error=dict(error), failed_at=db_now()
    )
    counted = connection.execute(
        statement.on_conflict_do_update(
            index_elements=[_f.key],
            set_={"failures": _f.failures + 1, "error": dict(error), "failed_at": db_now()},
        ).returning(_f.failures)
    ).scalar_one()
    return int(counted)


def _check_failures(
    connection: Connection, key: ServerKey, accepted_at: float, tolerated: int
) -> None:
    """Raise the last builder's error if too many have failed for this operation to be the next."""
    row = connection.execute(select(share_server_failures).where(_f.key == key.digest)).first()
    if row is None or row.failures < tolerated:
        return
    if accepted_at < row.failed_at:
        raise Fatal(
            row.error["message"],
            object=row.error.get("object", ""),
            code=ErrorCode(row.error["code"]),
        )
    # Accepted after the last failure: counting begins anew.
    connection.execute(delete(share_server_failures).where(_f.key == key.digest))


def deleted_by(connection: Connection, deleter_id: str) -> Row[Any] | None:
    """Return the row of the server that an operation is to delete on its backend, or None."""
    return connection.execute(select(share_servers).where(_s.deleter_id == deleter_id)).first()


def remove(connection: Connection, server_id: str) -> None:
    """Delete the row of a server that no longer exists on its backend, leaving a tombstone."""
    audits.add_tombstone(connection, OwnerKind.SHARE_SERVER, server_id)
    connection.execute(delete(share_servers).where(_s.id == server_id))


def mark_build_failed(connection: Connection, server_id: str, error: Mapping[str, str]) -> None:
    """Put the server of a failed build, now undone, in error; its row stays to show the reason."""
    connection.execute(
        update(share_servers)
        .where(_s.id == server_id)
        .values(
            status=ServerStatus.ERROR.value,
            error=dict(error),
            deleter_id=None,
            server_id=None,
            network_info=None,
            updated_at=db_now(),
        )
    )


def forget_failed(connection: Connection, longer_than: float, limit: int) -> int:
    """Delete rows of failed builds older than ``longer_than`` seconds; return how many."""
    old = (
        select(_s.id).where(audits.is_undone(), _s.updated_at < db_now() - longer_than).limit(limit)
    )
    return connection.execute(delete(share_servers).where(_s.id.in_(old))).rowcount


def mark(connection: Connection, server_id: str, status: ServerStatus, error: Any) -> None:
    """Show a server's failed deletion: set a status of error and the error."""
    connection.execute(
        update(share_servers)
        .where(_s.id == server_id, _s.status.in_(sources(SERVER_TRANSITIONS, status)))
        .values(status=status.value, error=error, updated_at=db_now())
    )


def idle(
    connection: Connection, longer_than: float, limit: int, *, backends: Iterable[str]
) -> list[str]:
    """Return ids of servers without references for over ``longer_than`` s, longest idle first."""
    rows = connection.execute(
        select(_s.id)
        .where(_s.idle_since < db_now() - longer_than, _s.backend.in_(sorted(backends)))
        .order_by(_s.idle_since)
        .limit(limit)
    )
    return [row.id for row in rows]


def mark_deleting(
    connection: Connection,
    server_id: str,
    deleter_id: str,
    *,
    among: tuple[ServerStatus, ...] = (ServerStatus.ACTIVE,),
) -> Row[Any] | None:
    """Mark a server without references ``deleting``; return its row, None if it has references.

    The server must have one of the statuses ``among``. If these include statuses of error, the
    deletion is taken over from its former deleter, which then finds nothing to do.
    """
    return connection.execute(
        update(share_servers)
        .where(_s.id == server_id, _s.shares == 0, _s.status.in_([one.value for one in among]))
        .values(
            status=ServerStatus.DELETING.value,
            deleter_id=deleter_id,
            idle_since=None,
            updated_at=db_now(),
        )
        .returning(*share_servers.c)
    ).first()
