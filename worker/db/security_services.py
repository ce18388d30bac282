"""Security services and the share networks that they are added to.

A share network's row has a digest of its security services. A share server is created for one
digest, so after a change of a service, or of the set, new shares get another server. Sealing a
password with another key does not change the digest.
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
    """Return the rows of the security services that are on a share network."""
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
    """Update the digest of a share network's security services; return the network's row."""
    return connection.execute(
        update(share_networks)
        .where(share_networks.c.id == network_id)
        .values(security_key=key_of(added(connection, network_id)), updated_at=db_now())
        .returning(*share_networks.c)
    ).one()


def opened(row: Row[Any], keys: Keys) -> SecurityService:
    """Return a security service with its password in clear: for compute helpers and drivers only.

    Raises :class:`~worker.errors.Fatal` when the password cannot be opened, and
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
    """Return the number of passwords sealed with each key, by key id."""
    rows = connection.execute(
        select(_c.password_key_id, func.count())
        .where(_c.password_key_id.is_not(None))
        .group_by(_c.password_key_id)
    )
    return {row[0]: row[1] for row in rows}


def settled_uses(connection: Connection) -> Mapping[str, int]:
    """Return :func:`uses` after transactions that are now writing such rows have ended."""
    if connection.dialect.name == "postgresql":
        connection.execute(_LOCK_TABLE)  # SQLite has only one writer: this transaction
    return uses(connection)


def reseal(connection: Connection, keys: Keys, *, after: str, limit: int) -> Mapping[str, bool]:
    """Seal a batch of passwords with the current key instead of older ones.

    The batch is the first ``limit`` services with ids greater than ``after``. Return their ids,
    each with True if it was sealed anew and False if its key does not open it. Raises
    :class:`~worker.errors.ConfigurationError` when a key cannot be read.
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
