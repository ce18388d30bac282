"""A share as its tenants see it: really over NFS, or in the fakes' world.

Both answer in the same words: content, or the name of the error in angle brackets.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from tests.support.tenants import Tenant, run
from worker.systems.fake_world import World

MIB = 1024 * 1024
GIB = 1024 * MIB
PIECE = 16 * MIB
DENIED = "<denied>"
READ_ONLY = "<read-only>"
FULL = "<quota>"


class View(ABC):
    """What clients of one share network see of its shares."""

    @abstractmethod
    def write(self, client: str, share: dict[str, Any], text: str) -> str:
        """Write the share's one file from a client's address; empty, or the error."""

    @abstractmethod
    def read(self, client: str, share: dict[str, Any]) -> str:
        """Read the file from a client's address."""

    @abstractmethod
    def fill(self, client: str, share: dict[str, Any], gib: int) -> str:
        """Write from a client where ``gib`` GiB, less a little, are used already."""

    @abstractmethod
    def reaches(self, client: str, share: dict[str, Any]) -> bool:
        """Whether the share's server answers the client at all."""

    def close(self) -> None:  # noqa: B027 - only the real one has something to take away
        """Take the clients away."""


class NfsView(View):
    """Clients in namespaces on the bridge of their share network."""

    _NAMES: ClassVar = {"NOENT": DENIED, "ACCESS": DENIED, "ROFS": READ_ONLY, "DQUOT": FULL}

    def __init__(self, bridge: str, prefix: int) -> None:
        self._bridge = bridge
        self._prefix = prefix
        self._tenants: dict[str, Tenant] = {}

    def _tenant(self, client: str) -> Tenant:
        if client not in self._tenants:
            self._tenants[client] = Tenant.make(self._bridge, f"{client}/{self._prefix}")
        return self._tenants[client]

    @staticmethod
    def _path(share: dict[str, Any]) -> str:
        return str(share["export_locations"][0]["path"])

    def _nfs(self, client: str, share: dict[str, Any], *words: str, data: bytes = b"") -> Any:
        answer = self._tenant(client).nfs(self._path(share), *words, data=data)
        if answer["ok"]:
            return answer
        return self._NAMES.get(answer["error"], f"<{answer['error']}: {answer['message']}>")

    def write(self, client: str, share: dict[str, Any], text: str) -> str:
        answer = self._nfs(client, share, "write", "file", data=text.encode())
        return answer if isinstance(answer, str) else ""

    def read(self, client: str, share: dict[str, Any]) -> str:
        answer = self._nfs(client, share, "read", "file")
        return answer if isinstance(answer, str) else str(answer["text"])

    def fill(self, client: str, share: dict[str, Any], gib: int) -> str:
        # The bulk is allocated on the host: it counts alike, and takes no minute to send.
        bulk = Path(self._mount_point(share)) / "bulk"
        size = bulk.stat().st_size if bulk.exists() else 0
        with bulk.open("ab") as file:
            try:
                while size <= gib * GIB:
                    os.posix_fallocate(file.fileno(), size, PIECE)
                    size += PIECE
            except OSError as error:
                if error.errno != errno.EDQUOT:
                    raise
        if size < gib * GIB - 4 * PIECE:
            return f"<only {size} of {gib} GiB>"
        answer = self._nfs(client, share, "fill", f"last-{gib}", str(2 * PIECE))
        return answer if isinstance(answer, str) else ""

    @staticmethod
    def _mount_point(share: dict[str, Any]) -> str:
        mounts = run("findmnt", "-rno", "TARGET").splitlines()
        return next(target for target in mounts if target.endswith(str(share["id"])))

    def reaches(self, client: str, share: dict[str, Any]) -> bool:
        address = self._path(share).rpartition(":")[0]
        return self._tenant(client).reaches(address, 2049)

    def close(self) -> None:
        for tenant in self._tenants.values():
            tenant.close()


class FakeView(View):
    """Clients of the fakes' world; it knows rules and sizes, but no networks."""

    _NAMES: ClassVar = {errno.EACCES: DENIED, errno.EROFS: READ_ONLY, errno.EDQUOT: FULL}

    def __init__(self, world: World, share_network_id: str) -> None:
        self._world = world
        self._network = share_network_id

    def _said(self, error: OSError) -> str:
        return self._NAMES.get(error.errno or 0, f"<{error}>")

    def write(self, client: str, share: dict[str, Any], text: str) -> str:
        try:
            self._world.write(str(share["id"]), client, text)
        except OSError as error:
            return self._said(error)
        return ""

    def read(self, client: str, share: dict[str, Any]) -> str:
        try:
            return self._world.read(str(share["id"]), client)
        except OSError as error:
            return self._said(error)

    def fill(self, client: str, share: dict[str, Any], gib: int) -> str:
        try:
            self._world.write(str(share["id"]), client, "bulk", used_gib=gib + 1)
        except OSError as error:
            return self._said(error)
        return ""

    def reaches(self, client: str, share: dict[str, Any]) -> bool:
        return bool(client) and share["share_network_id"] == self._network
