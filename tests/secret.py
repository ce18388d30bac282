"""A password for tests, and every form in which it must be found nowhere."""

from __future__ import annotations

import base64
import json
import uuid
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, quote_plus

from scheduler.client import Client
from tests.intake import take_in
from worker.config import Config
from worker.sealing import Keys

PASSWORD: Final = 'Zq7+kV"ß 9/x&%Wm2#r'
"""Looks different in JSON, in a URL and in base64."""

AD: Final = {
    "type": "active_directory",
    "dns_ip": "10.0.0.53",
    "domain": "corp.example",
    "user": "joiner",
}


def forms(secret: str = PASSWORD) -> dict[str, bytes]:
    """The secret as it stands, escaped, in hex, and in base64 from each of its three starts."""
    raw = secret.encode()
    found = {
        "clear": raw,
        "json": json.dumps(secret)[1:-1].encode(),
        "repr": repr(secret)[1:-1].encode(),
        "escaped twice": json.dumps(json.dumps(secret))[3:-3].encode(),
        "url": quote(secret, safe="").encode(),
        "form": quote_plus(secret).encode(),
        "hex": raw.hex().encode(),
        "HEX": raw.hex().upper().encode(),
        "utf-16": secret.encode("utf-16-le"),
    }
    for skip in range(3):
        # Whatever stands before and after it, these characters of the middle stay.
        encoded = base64.b64encode(b"\0" * skip + raw)
        middle = encoded[4 if skip else 0 : len(encoded) // 4 * 4 - 4]
        found[f"base64 from {skip}"] = middle
        found[f"base64url from {skip}"] = middle.translate(bytes.maketrans(b"+/", b"-_"))
    return found


def leaks(where: str, haystack: bytes, secret: str = PASSWORD) -> list[str]:
    """Name every form of the secret that is found."""
    return [f"{where}: {form}" for form, needle in forms(secret).items() if needle in haystack]


def sealed(directory: Path, project: str, secret: str = PASSWORD) -> dict[str, str]:
    """What a payload takes, sealed with the current key of a directory."""
    client = Client("memory://", "cache+memory://")
    try:
        return client.seal(secret, project_id=project, key=Keys(directory).current())
    finally:
        client.close()


def config_of(url: str, directory: Path) -> Config:
    """A configuration with its first key."""
    Keys(directory).generate()
    return Config.model_validate(
        {"database": {"url": url}, "secrets": {"directory": str(directory)}}
    )


class Asker:
    """Sends requests of one project to an intake in this very process."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.project = f"project-{uuid.uuid4()}"

    def __call__(self, verb: str, project: str | None = None, **fields: Any) -> dict[str, Any]:
        """Return the answer; raises :class:`~worker.errors.Refused`."""
        operation_id = str(uuid.uuid4())
        asked = {"version": 1, "context": {"project_id": project or self.project}, **fields}
        answer: dict[str, Any] = take_in(self.config, verb, asked, operation_id)[operation_id]
        return answer

    def password(self, project: str | None = None, secret: str = PASSWORD) -> dict[str, str]:
        """A password, sealed with the current key."""
        return sealed(self.config.secrets.directory, project or self.project, secret)
