"""Ask NFS servers of this host whether they answer: the NULL procedure, from their namespaces.

A daemon that hangs is in the process list, and the kernel even takes connections for it. So each
is sent one NULL call, which every NFSv4 server answers at once whoever asks. All are asked at the
same time, with no process started.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from worker.systems.shell.local import NAMESPACES

PORT: Final = 2049
_OWN_NETWORK: Final = Path("/proc/thread-self/ns/net")
PROBE_SECONDS: Final = (5.0, 10.0)
"""How long a server may take to answer the first probe, and the second."""
_CLONE_NEWNET: Final = 0x40000000
_XID: Final = 0x53484152
# A record mark (last fragment, 40 bytes), then: call, RPC version 2, program NFS, version 4,
# procedure NULL, no credentials, no verifier.
_CALL: Final = struct.pack(">11I", 0x80000028, _XID, 0, 2, 100003, 4, 0, 0, 0, 0, 0)
_REPLY: Final = struct.pack(">2I", _XID, 1)
_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class NfsServer:
    """Where an NFS server listens; ``namespace`` is empty for this host's own network."""

    namespace: str
    address: str


def hanging(servers: Mapping[str, NfsServer]) -> frozenset[str]:
    """Return the keys of the servers that answer nothing, asked a second time to be sure."""
    quiet = frozenset(servers)
    for seconds in PROBE_SECONDS:
        if quiet:
            quiet = _silent({key: servers[key] for key in quiet}, seconds)
    return quiet


def _silent(servers: Mapping[str, NfsServer], seconds: float) -> frozenset[str]:
    """Return the keys of the servers that give no answer within so many seconds."""
    answered: set[str] = set()
    # Entering a namespace is a thread's own affair; this thread ends in the last one.
    thread = threading.Thread(target=_ask, args=(servers, time.monotonic() + seconds, answered))
    thread.start()
    thread.join()
    return frozenset(servers) - answered


def _ask(servers: Mapping[str, NfsServer], deadline: float, answered: set[str]) -> None:
    with selectors.DefaultSelector() as waiting, _OWN_NETWORK.open() as home:
        for key, server in servers.items():
            connection = _connect(server, home.fileno())
            if connection is not None:
                waiting.register(connection, selectors.EVENT_WRITE, key)
        while waiting.get_map() and (left := deadline - time.monotonic()) > 0:
            for ready, _ in waiting.select(left):
                _go_on(waiting, ready, answered)
        for ready in list(waiting.get_map().values()):
            _close(waiting, ready)


def _connect(server: NfsServer, home: int) -> socket.socket | None:
    """Begin a connection from the server's namespace; None where there is no such namespace."""
    try:
        if server.namespace:
            with (NAMESPACES / server.namespace).open() as handle:
                _enter(handle.fileno())
        else:
            _enter(home)
        family = socket.AF_INET6 if ":" in server.address else socket.AF_INET
        connection = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        return None
    connection.setblocking(False)
    connection.connect_ex((server.address, PORT))
    return connection


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _go_on(
    waiting: selectors.BaseSelector, ready: selectors.SelectorKey, answered: set[str]
) -> None:
    """Send the call over a connection that stands, or read the answer."""
    connection = ready.fileobj
    assert isinstance(connection, socket.socket)
    try:
        if ready.events == selectors.EVENT_WRITE:
            connection.sendall(_CALL)
            waiting.modify(connection, selectors.EVENT_READ, ready.data)
            return
        if _REPLY in connection.recv(4096):
            answered.add(ready.data)
    except OSError:
        pass  # refused or cut off: no answer
    _close(waiting, ready)


def _close(waiting: selectors.BaseSelector, ready: selectors.SelectorKey) -> None:
    connection = ready.fileobj
    assert isinstance(connection, socket.socket)
    waiting.unregister(connection)
    connection.close()
