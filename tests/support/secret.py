"""A password for tests, and every form in which it must be found nowhere."""

from __future__ import annotations

import base64
import json
import uuid
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote_plus

from scheduler.client import Client
from tests.support.intake import take_in
from worker.config import Config
from worker.sealing import Keys

CORE: Final = "Zq7kVcorrectHorse9Wm2r"
"""The part of a password that looks the same in JSON, in a URL and in Python's own notation."""
PASSWORD: Final = f'"+ß/ {CORE}&%'

AD: Final = {
    "type": "active_directory",
    "dns_ip": "10.0.0.53",
    "domain": "corp.example",
    "user": "joiner",
}


def forms(core: str = CORE) -> dict[str, bytes]:
    """The core as it stands, in hex, and in base64 whatever is in front of it and behind.

    Escaping for JSON, for URLs, or for a terminal leaves the core as it is.
    """
    raw = core.encode()
    assert {core, quote_plus(core), json.dumps(core)[1:-1], repr(core)[1:-1]} == {core}
    found = {
        "clear": raw,
        "hex": raw.hex().encode(),
        "HEX": raw.hex().upper().encode(),
        "utf-16": core.encode("utf-16-le"),
    }
    for skip in range(3):
        encoded = base64.b64encode(b"\0" * skip + raw)
        # The first group mixes with what is in front, the last one with what is behind.
        middle = encoded[4 if skip else 0 : len(encoded) - 4]
        found[f"base64 from {skip}"] = middle
        found[f"base64url from {skip}"] = middle.translate(bytes.maketrans(b"+/", b"-_"))
    return found


def leaks(where: str, haystack: bytes, core: str = CORE) -> list[str]:
    """Name every form of a password's core that is found."""
    return [f"{where}: {form}" for form, needle in forms(core).items() if needle in haystack]


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
