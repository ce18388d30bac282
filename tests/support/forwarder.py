"""A TCP forwarder whose target moves, and whose connections can fall silent."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from typing import Self

from tests.support.services import free_port


class Forwarder:
    """Listens on a port of its own and forwards to another one.

    ``target`` may be changed: new connections go there. :meth:`silence` keeps every connection
    that is open, acknowledges what arrives on it, and delivers nothing any more.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = free_port()
        self._silent: set[socket.socket] = set()
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._closed = False
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._thread.join(5)
        with self._lock:
            for one in [*self._pairs, self._listener]:
                one.close()
        self._selector.close()

    def silence(self) -> int:
        """Deliver nothing any more over the connections that are open; return how many."""
        with self._lock:
            self._silent |= self._pairs.keys()
            return len(self._silent) // 2

    def _run(self) -> None:
        while not self._closed:
            for key, _ in self._selector.select(0.1):
                one = key.fileobj
                assert isinstance(one, socket.socket)
                with self._lock:
                    if one is self._listener:
                        self._accept()
                    elif one in self._pairs:
                        self._forward(one)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(("127.0.0.1", self.target), timeout=5)
        except OSError:
            client.close()
            return
        for one, other in ((client, server), (server, client)):
            self._pairs[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _forward(self, one: socket.socket) -> None:
        other = self._pairs[one]
        with contextlib.suppress(OSError):
            if data := one.recv(65536):
                if one not in self._silent:
                    other.sendall(data)
                return
        if one in self._silent:  # the end of one side does not reach the other either
            self._selector.unregister(one)
            return
        for end in (one, other):
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(end)
            self._pairs.pop(end, None)
            end.close()
