"""Decrypt security services just before compute helpers and drivers need them."""

from __future__ import annotations

import logging
from dataclasses import replace

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from worker.config import Config
from worker.db import security_services as security
from worker.db.core.engine import engine_for, reading
from worker.errors import ConfigurationError, ErrorCode, Fatal, ObjectKind
from worker.model import SecurityService, ShareServer
from worker.sealing import Keys

_log = logging.getLogger(__name__)


def check_keys(config: Config) -> None:
    """Check, before the worker consumes anything, that it can decrypt all stored passwords.

    Raises :class:`~worker.errors.ConfigurationError` when it lacks a key.
    """
    try:
        with reading(engine_for(config.database.url)) as connection:
            used = security.uses(connection)
    except DBAPIError as error:
        _log.warning(
            "The database cannot be read, so keys are not checked: %s", str(error.orig).strip()
        )
        return
    keys = Keys(config.secrets.directory)
    for key_id, count in used.items():
        try:
            keys.private(key_id)
        except ConfigurationError as error:
            passwords = "passwords are" if count > 1 else "password is"
            raise ConfigurationError(
                f"{count} {passwords} sealed with key {key_id}. {error.message}"
            ) from error


def services_of(
    config: Config, connection: Connection, server: ShareServer
) -> tuple[SecurityService, ...]:
    """Return the security services of a share server, with their passwords in clear text.

    Raises :class:`~worker.errors.Fatal` when a password cannot be decrypted on this worker, or when
    the share network's security services are no longer those of the server.
    """
    if not server.security_key:
        return ()
    assert server.share_network_id is not None, "security services are a share network's"
    rows = security.added(connection, server.share_network_id)
    if security.key_of(rows) != server.security_key:
        raise Fatal(
            f"The security services of share network {server.share_network_id} were "
            f"changed after share server {server.id} was created; send the request again.",
            object=ObjectKind.SHARE_SERVER.ref(server.id),
            code=ErrorCode.CONFLICT,
        )
    keys = Keys(config.secrets.directory)
    try:
        return tuple(security.opened(row, keys) for row in rows)
    except ConfigurationError as error:
        raise Fatal(
            f"The security services of share network {server.share_network_id} cannot be used on "
            f"this worker. {error.message}",
            object=ObjectKind.SHARE_SERVER.ref(server.id),
            code=ErrorCode.CONFIGURATION,
        ) from error


def with_services(config: Config, connection: Connection, server: ShareServer) -> ShareServer:
    """Return a share server with its security services; raises as :func:`services_of` does."""
    return replace(server, security_services=services_of(config, connection, server))
