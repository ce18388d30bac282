"""An NFSv4 client in user space for tests: ctypes over Debian's libnfs13.

Run it inside a tenant's namespace, so that packets take the way that a tenant's take::

    nsenter --net=/run/netns/TENANT \\
        python tests/support/nfs.py nfs://10.0.0.10/shares/ID write f 4096
    ... read f | list | digest f | remove f | loop f SECONDS

It prints one JSON document: ``{"ok": true, ...}`` or ``{"ok": false, "error": "DQUOT", ...}``;
``error`` is the server's own name without NFS4ERR_, or ``TIMEOUT`` when nobody answers. The
``loop`` writes and reads a file again and again, until its time is over or SIGTERM comes, and
counts the operations that failed.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import re
import signal
import socket
import sys
import time
from urllib.parse import urlsplit

CHUNK = 3072
"""libnfs 4.0 encodes NFSv4 writes of up to 3,000-odd bytes only (docs/facts.md)."""
SECONDS = 4


class NfsError(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        found = re.search(r"NFS4ERR_([A-Z_]+)", message)
        self.name = found.group(1) if found else "TIMEOUT" if _timed_out(message) else "OTHER"


def _timed_out(message: str) -> bool:
    return bool(re.search(r"time|connect|unreach|route", message, re.IGNORECASE))


def _library() -> ctypes.CDLL:
    lib = ctypes.CDLL("libnfs.so.13", use_errno=True)
    lib.nfs_init_context.restype = ctypes.c_void_p
    lib.nfs_get_error.restype = ctypes.c_char_p
    lib.nfs_opendir.restype = ctypes.c_int
    lib.nfs_readdir.restype = ctypes.POINTER(_Entry)
    return lib


class _Entry(ctypes.Structure):
    _fields_ = (("next", ctypes.c_void_p), ("name", ctypes.c_char_p))


class Mount:
    """One mounted export; every call raises NfsError."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        host = parts.netloc
        try:  # libnfs itself takes over a minute to give up an address that does not answer
            socket.create_connection((host.strip("[]"), 2049), SECONDS).close()
        except OSError as error:
            raise NfsError(f"cannot connect: {error}") from error
        self._lib = _library()
        self._nfs = ctypes.c_void_p(self._lib.nfs_init_context())
        self._lib.nfs_set_version(self._nfs, 4)
        self._lib.nfs_set_timeout(self._nfs, SECONDS * 1000)
        self._lib.nfs_set_autoreconnect(self._nfs, -1)
        self._check(self._lib.nfs_mount(self._nfs, host.encode(), parts.path.encode()))

    def _check(self, code: int) -> int:
        if code < 0:
            raise NfsError(f"{(self._lib.nfs_get_error(self._nfs) or b'?').decode()} ({code})")
        return code

    def open(self, name: str, flags: int) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        path = f"/{name}".encode()
        self._check(self._lib.nfs_open(self._nfs, path, flags, ctypes.byref(handle)))
        return handle

    def create(self, name: str) -> ctypes.c_void_p:
        if name in self.list():
            handle = self.open(name, os.O_RDWR)
            self._check(self._lib.nfs_ftruncate(self._nfs, handle, ctypes.c_uint64(0)))
            return handle
        handle = ctypes.c_void_p()
        path = f"/{name}".encode()
        flags = os.O_CREAT | os.O_RDWR
        self._check(self._lib.nfs_open2(self._nfs, path, flags, 0o644, ctypes.byref(handle)))
        return handle

    def close(self, handle: ctypes.c_void_p) -> None:
        self._check(self._lib.nfs_close(self._nfs, handle))

    def pwrite(self, handle: ctypes.c_void_p, offset: int, data: bytes) -> None:
        """Write all of it; as for any client, a short write is followed by one of the rest."""
        while data:
            size = ctypes.c_uint64(len(data))
            done = self._check(
                self._lib.nfs_pwrite(self._nfs, handle, ctypes.c_uint64(offset), size, data)
            )
            offset, data = offset + done, data[done:]

    def pread(self, handle: ctypes.c_void_p, offset: int, size: int) -> bytes:
        buffer = ctypes.create_string_buffer(size)
        done = self._lib.nfs_pread(
            self._nfs, handle, ctypes.c_uint64(offset), ctypes.c_uint64(size), buffer
        )
        return buffer.raw[: self._check(done)]

    def fsync(self, handle: ctypes.c_void_p) -> None:
        self._check(self._lib.nfs_fsync(self._nfs, handle))

    def write(self, name: str, data: bytes) -> None:
        handle = self.create(name)
        try:
            for offset in range(0, len(data), CHUNK):
                self.pwrite(handle, offset, data[offset : offset + CHUNK])
            self.fsync(handle)
        finally:
            self.close(handle)

    def read(self, name: str) -> bytes:
        handle = self.open(name, os.O_RDONLY)
        parts: list[bytes] = []
        try:
            while part := self.pread(handle, sum(map(len, parts)), 65536):
                parts.append(part)
        finally:
            self.close(handle)
        return b"".join(parts)

    def list(self) -> list[str]:
        directory = ctypes.c_void_p()
        self._check(self._lib.nfs_opendir(self._nfs, b"/", ctypes.byref(directory)))
        names = []
        while entry := self._lib.nfs_readdir(self._nfs, directory):
            names.append(entry.contents.name.decode())
        self._lib.nfs_closedir(self._nfs, directory)
        return sorted(set(names) - {".", ".."})

    def remove(self, name: str) -> None:
        self._check(self._lib.nfs_unlink(self._nfs, f"/{name}".encode()))


def _pattern(number: int, size: int) -> bytes:
    block = hashlib.sha256(str(number).encode()).digest()
    return (block * (size // len(block) + 1))[:size]


def _loop(mount: Mount, name: str, seconds: float) -> dict[str, object]:
    """Write and read back until the time is over; each operation is counted, as is each failure.

    SIGTERM ends it between two operations; inside one it would fail that one's ``poll``.
    """
    operations, failures, longest = 0, [], 0.0
    handle = mount.create(name)
    end = time.monotonic() + seconds
    while time.monotonic() < end and signal.SIGTERM not in signal.sigpending():
        data = _pattern(operations, CHUNK)
        begun = time.monotonic()
        try:
            mount.pwrite(handle, 0, data)
            if mount.pread(handle, 0, CHUNK) != data:
                failures.append("read back something else")
        except NfsError as error:
            failures.append(str(error))
        longest = max(longest, time.monotonic() - begun)
        operations += 2
    mount.close(handle)
    return {"operations": operations, "failures": failures[:20], "longest": round(longest, 3)}


def _run(arguments: argparse.Namespace) -> dict[str, object]:
    mount = Mount(arguments.url)
    match arguments.operation:
        case "mount":
            return {}
        case "write":
            mount.write(arguments.name, sys.stdin.buffer.read())
            return {}
        case "fill":
            handle = mount.create(arguments.name)
            return _fill(mount, handle, int(arguments.amount))
        case "read":
            return {"text": mount.read(arguments.name).decode("utf-8", "replace")}
        case "list":
            return {"names": mount.list()}
        case "remove":
            mount.remove(arguments.name)
            return {}
        case _:
            return _loop(mount, arguments.name, float(arguments.amount))


def _fill(mount: Mount, handle: ctypes.c_void_p, size: int) -> dict[str, object]:
    """Write incompressible bytes until ``size`` or the first error, which it carries on."""
    data = os.urandom(CHUNK)
    for offset in range(0, size, CHUNK):
        mount.pwrite(handle, offset, data)
    mount.fsync(handle)
    mount.close(handle)
    return {"written": size}


def main() -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    operations = ["mount", "write", "fill", "read", "list", "remove", "loop"]
    parser.add_argument("operation", choices=operations)
    parser.add_argument("name", nargs="?", default="file")
    parser.add_argument("amount", nargs="?", default="1")
    try:
        answer = {"ok": True} | _run(parser.parse_args())
    except NfsError as error:
        answer = {"ok": False, "error": error.name, "message": str(error)}
    print(json.dumps(answer))
    return 0 if answer["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
