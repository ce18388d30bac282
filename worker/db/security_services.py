"""Security services and the share networks that they are added to.

A share network carries a digest of what is added to it. Share servers are made for that digest,
so another set of services, or a service that was changed, comes to another server. Sealing a
password anew, for another key, changes nothing for the servers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, func, select, text, update

from worker.db.core.engine import db_now
from worker.db.tables.main import security_services, share_network_security_services, share_networks
from worker.errors import ErrorCode, Fatal, ObjectKind
from worker.model import SecurityService, SecurityServiceType
from worker.sealing import Keys, seal_anew

_c = security_services.c
_a = share_network_security_services.c
_LOCK_TABLE: Final = text("LOCK TABLE security_services IN SHARE MODE")


def added(connection: Connection, network_id: str) -> Sequence[Row[Any]]:
    """Return the rows of a share network's security services."""
    return connection.execute(
        select(security_services)
        .join(share_network_security_services, _a.security_service_id == _c.id)
        .where(_a.share_network_id == network_id)
        .order_by(_c.type)
    ).all()


def key_of(rows: Sequence[Row[Any]]) -> str:
    """Return the digest of a set of security services; empty for none."""
    if not rows:
        return ""
    parts = sorted(f"{row.id}:{row.revision}" for row in rows)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]


def note_key(connection: Connection, network_id: str) -> Row[Any]:
    """Write what a share network's services come to now; return its row."""
    return connection.execute(
        update(share_networks)
        .where(share_networks.c.id == network_id)
        .values(security_key=key_of(added(connection, network_id)), updated_at=db_now())
        .returning(*share_networks.c)
    ).one()


def opened(row: Row[Any], keys: Keys) -> SecurityService:
    """Return a security service with its password in clear: for compute helpers and drivers only.

    Raises :class:`~worker.errors.Fatal` when it cannot be opened, and
    :class:`~worker.errors.ConfigurationError` when its key cannot be read.
    """
    password = None
    if row.password_sealed is not None:
        try:
            password = keys.open(row.password_key_id, row.password_sealed, row.project_id)
        except ValueError as error:
            raise Fatal(
                f"The password of security service {row.id}, sealed with key "
                f"{row.password_key_id}, cannot be opened: {error}. Update the security service "
                f"with a password that is sealed for its own project.",
                object=ObjectKind.SECURITY_SERVICE.ref(row.id),
                field="password",
                code=ErrorCode.CONFIGURATION,
            ) from None
    return SecurityService(
        id=row.id,
        type=SecurityServiceType(row.type),
        dns_ip=row.dns_ip,
        server=row.server,
        domain=row.domain,
        ou=row.ou,
        user=row.user,
        password=password,
    )


def uses(connection: Connection) -> Mapping[str, int]:
    """Return how many passwords are sealed with each key."""
    rows = connection.execute(
        select(_c.password_key_id, func.count())
        .where(_c.password_key_id.is_not(None))
        .group_by(_c.password_key_id)
    )
    return {row[0]: row[1] for row in rows}


def settled_uses(connection: Connection) -> Mapping[str, int]:
    """As :func:`uses`, once whoever is writing such a row by now has committed it."""
    if connection.dialect.name == "postgresql":
        connection.execute(_LOCK_TABLE)  # on SQLite there is one writer: this transaction
    return uses(connection)


def reseal(connection: Connection, keys: Keys, *, after: str, limit: int) -> Mapping[str, bool]:
    """Seal passwords with the current key instead of older ones: a batch of ids behind ``after``.

    Return the ids of the batch and whether each is sealed anew; those are not that their key does
    not open. Raises :class:`~worker.errors.ConfigurationError` when a key cannot be read.
    """
    current = keys.current()
    assert current is not None, "there are no passwords without a key"
    rows = connection.execute(
        select(_c.id, _c.password_key_id, _c.password_sealed)
        .where(_c.id > after, _c.password_key_id != current.id)
        .order_by(_c.id)
        .limit(limit)
        .with_for_update()
    ).all()
    done = {}
    for row in rows:
        try:
            document = keys.unseal(row.password_key_id, row.password_sealed)
        except ValueError:
            done[row.id] = False
            continue
        connection.execute(
            update(security_services)
            .where(_c.id == row.id)
            .values(password_key_id=current.id, password_sealed=seal_anew(current, document))
        )
        done[row.id] = True
    return done
