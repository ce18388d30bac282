"""A TCP proxy that can fall silent: connections stay, and nothing goes through any more."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Self

CHUNK = 65536


class Proxy:
    """Forwards connections from a port of 127.0.0.1 to an address, until told to be silent."""

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
        self._silent = threading.Event()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def be_silent(self) -> None:
        """Take whatever is sent, and answer nothing."""
        self._silent.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return  # closed
            far = self._connect()
            self._sockets += [near, far]
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._forward, args=(source, target), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(CHUNK):
                if not self._silent.is_set():
                    target.sendall(data)
            if not self._silent.is_set():
                target.shutdown(socket.SHUT_WR)
        except OSError:
            return  # the other side is gone

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for one in self._sockets:
            one.close()
