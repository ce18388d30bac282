"""Encryption of secrets: anybody can seal one for the deployment, only its workers can open it.

A secret is sealed with the deployment's public key (libsodium's sealed box, by PyNaCl) before it
is sent, so broker, database and log never contain it in clear text. The sealed document is JSON
and names the project too, so a sealed secret is useless in another project's security service.

Keys are files in one directory: ``<id>.pub`` and ``<id>.key`` hold the public and the private
half in base64, and ``current`` holds the id of the key that seals new secrets. An id is a digest
of the public key. Files are read when they are needed, so a new key needs no restart.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox

from worker.errors import ConfigurationError, InvalidRequest

KEY_ID: Final = re.compile(r"[0-9a-f]{16}")
OVERHEAD: Final = 48
"""Bytes that sealing adds to a document."""
LONGEST: Final = OVERHEAD + 2048
"""Maximum length of a sealed document, in bytes."""


@dataclass(frozen=True, slots=True)
class SealingKey:
    """Public half of a key, with the key's id."""

    id: str
    public: bytes


def seal(key: SealingKey, secret: str, project_id: str) -> bytes:
    """Seal a project's secret; only holders of the private half can open it.

    Raises :class:`~worker.errors.InvalidRequest` when the secret is too long.
    """
    document = json.dumps({"project_id": project_id, "secret": secret}).encode()
    if OVERHEAD + len(document) > LONGEST:
        raise InvalidRequest("The password is too long: a document of 2 KiB holds it.")
    return seal_anew(key, document)


def seal_anew(key: SealingKey, document: bytes) -> bytes:
    """Seal a document as :meth:`Keys.unseal` returns it."""
    return SealedBox(PublicKey(key.public)).encrypt(document)


def id_of(public: bytes) -> str:
    """Return the id of a public key."""
    return hashlib.sha256(public).hexdigest()[:16]


class Keys:
    """The keys of a deployment, stored in a directory.

    Methods raise :class:`~worker.errors.ConfigurationError` with the key's id for a file that
    cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def ids(self) -> list[str]:
        """Return the ids of all keys with either half in the directory."""
        halves = (*self.directory.glob("*.pub"), *self.directory.glob("*.key"))
        return sorted({path.stem for path in halves if KEY_ID.fullmatch(path.stem)})

    def has(self, key_id: str) -> bool:
        """Return whether new secrets sealed with this key are accepted."""
        return _exists(self._path(key_id, "pub"))

    def has_private(self, key_id: str) -> bool:
        """Return whether this host seems to have the private half; :meth:`private` reads it."""
        return _exists(self._path(key_id, "key"))

    def current(self) -> SealingKey | None:
        """Return the key that seals new secrets, or None when there is none yet."""
        named = self.directory / "current"
        if not _exists(named):
            return None
        key_id = _read(named).strip()
        public = self._half(key_id, "pub")
        if id_of(public) != key_id:
            raise ConfigurationError(
                f"The public key in {self._path(key_id, 'pub')} is not that of key {key_id}; "
                f"bring the file back."
            )
        return SealingKey(key_id, public)

    def generate(self) -> SealingKey:
        """Create a key and make it the current one; older keys still open older secrets."""
        private = PrivateKey.generate()
        public = bytes(private.public_key)
        key = SealingKey(id_of(public), public)
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(self._path(key.id, "key"), bytes(private), 0o600)
            _write(self._path(key.id, "pub"), public, 0o644)
            self._be_current(key.id)
        except OSError as error:
            raise ConfigurationError(
                f"No key can be written to {self.directory}: {error.strerror}."
            ) from error
        return key

    def _be_current(self, key_id: str) -> None:
        _replace(self.directory / "current", f"{key_id}\n".encode(), 0o644)

    def open(self, key_id: str, sealed: bytes, project_id: str) -> str:
        """Open a project's sealed secret.

        Raises :class:`~worker.errors.ConfigurationError` when the key cannot be read, and
        ``ValueError`` when the key does not open the secret or it belongs to another project.
        """
        try:
            document = json.loads(self.unseal(key_id, sealed))
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise ValueError("what was sealed is no JSON") from None
        if not isinstance(document, dict) or document.get("project_id") != project_id:
            raise ValueError("it was not sealed for this project")
        secret = document.get("secret")
        if not isinstance(secret, str):
            raise ValueError("there is no secret in it")  # noqa: TRY004 - a value, not a type
        return secret

    def unseal(self, key_id: str, sealed: bytes) -> bytes:
        """Return a sealed document of any project; raise like :meth:`open`."""
        try:
            return SealedBox(self.private(key_id)).decrypt(sealed)
        except CryptoError as error:
            raise ValueError("the key does not open it") from error

    def private(self, key_id: str) -> PrivateKey:
        """Return a key's private half."""
        path = self._path(key_id, "key")
        found = PrivateKey(self._half(key_id, "key"))
        if id_of(bytes(found.public_key)) != key_id:
            raise ConfigurationError(
                f"The private key in {path} is not that of key {key_id}; bring the file back."
            )
        if path.stat().st_mode & 0o007:
            raise ConfigurationError(
                f"The private key {path} can be read by everybody; chmod it to 600."
            )
        return found

    def refuse(self, key_id: str) -> None:
        """Refuse new secrets sealed with this key, until :meth:`accept` is called."""
        if self.has(key_id):  # otherwise it was refused before, by a call that was interrupted
            self._path(key_id, "pub").rename(self._path(key_id, "retiring"))

    def accept(self, key_id: str) -> None:
        """Accept new secrets sealed with this key again: undo :meth:`refuse`."""
        if _exists(self._path(key_id, "retiring")):
            self._path(key_id, "retiring").rename(self._path(key_id, "pub"))

    def remove(self, key_id: str) -> None:
        """Destroy a refused key; secrets sealed with it can no longer be opened."""
        for half in ("key", "retiring"):
            self._path(key_id, half).unlink(missing_ok=True)

    def _path(self, key_id: str, half: str) -> Path:
        return self.directory / f"{key_id}.{half}"

    def _half(self, key_id: str, half: str) -> bytes:
        path = self._path(key_id, half)
        kind = "private" if half == "key" else "public"
        try:
            content = base64.b64decode(_read(path), validate=True)
        except (ConfigurationError, binascii.Error) as error:
            reason = error.message if isinstance(error, ConfigurationError) else "It is no base64."
            raise ConfigurationError(
                f"The {kind} half of key {key_id} cannot be read from {path}. {reason} "
                f"Bring the file back from where the keys are kept, or set `[secrets] directory`."
            ) from error
        if len(content) != PublicKey.SIZE:
            raise ConfigurationError(
                f"The {kind} half of key {key_id} in {path} has {len(content)} bytes instead of "
                f"{PublicKey.SIZE}; bring the file back."
            )
        return content


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except OSError:
        return False
    return True


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text"
        raise ConfigurationError(f"{path}: {reason}.") from error


def _write(path: Path, content: bytes, mode: int) -> None:
    _replace(path, base64.b64encode(content) + b"\n", mode)


def _replace(path: Path, content: bytes, mode: int) -> None:
    """Write a file so that readers see the old or the new content, even after a power cut."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
