"""Cloud-config (for cloud-init) of a share server's machine at its first boot.

The machine gets its host key from us, so that it can be told from any other before the first
connection. The key is made of the backend's own SSH key and the share server's id: whoever takes
up the build of a dead worker knows it too, and nothing secret is stored.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import asyncssh
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from worker.systems.shell.ssh import private_key

_PURPOSE: Final = b"sharewright: SSH host key of share server "
_SEED: Final = 32
"""Bytes of an Ed25519 private key (RFC 8032)."""
_DAEMONS: Final = ("nfs-ganesha.service", "nfs-ganesha-lock.service")
"""Services of the packages that would take the NFS port of ours."""


def host_key_pair(private_key_file: Path, server_id: str) -> tuple[str, str]:
    """Return a share server's host key: private in OpenSSH's format, public as one line.

    The same file and id give the same key (OpenSSH's format has a random number beside it).
    Raises :class:`~worker.errors.Fatal` when the file is not a readable private key.
    """
    secret = private_key(private_key_file).export_private_key("pkcs8-der")
    seed = HKDF(SHA256(), _SEED, salt=None, info=_PURPOSE + server_id.encode()).derive(secret)
    host_key = asyncssh.import_private_key(
        Ed25519PrivateKey.from_private_bytes(seed).private_bytes(
            Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()
        )
    )
    return host_key.export_private_key().decode(), host_key.export_public_key().decode().strip()


def user_data(
    private_key_file: Path, server_id: str, *, user: str, packages: Sequence[str], ready_file: str
) -> str:
    """Return the cloud-config of a share server's machine.

    It installs the host key and nothing but it, lets ``user`` in with the backend's key and
    nobody with a password, installs ``packages``, and makes ``ready_file`` when it is through.
    It contains the machine's private host key, so it is not to be logged. JSON is YAML.
    """
    host_private, host_public = host_key_pair(private_key_file, server_id)
    authorized = private_key(private_key_file).export_public_key().decode().strip()
    document: dict[str, Any] = {
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": host_private, "ed25519_public": host_public},
        "ssh_pwauth": False,
        "disable_root": user != "root",
        "users": [_user(user, authorized)],
        "bootcmd": [["systemctl", "mask", *_DAEMONS]],
        "package_update": bool(packages),
        "packages": list(packages),
        "runcmd": [["mkdir", "-p", str(Path(ready_file).parent)], ["touch", ready_file]],
    }
    return "#cloud-config\n" + json.dumps(document, indent=1) + "\n"


def _user(name: str, authorized: str) -> dict[str, Any]:
    login: dict[str, Any] = {"name": name, "ssh_authorized_keys": [authorized]}
    if name == "root":
        return login
    return {**login, "lock_passwd": True, "shell": "/bin/sh", "sudo": "ALL=(ALL) NOPASSWD:ALL"}
