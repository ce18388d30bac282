"""Hosts for tests: network namespaces on one underlay, and a thread that is inside one of them."""

from __future__ import annotations

import ctypes
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.tenants import run

_CLONE_NEWNET = 0x40000000
_OWN = Path("/proc/thread-self/ns/net")


@dataclass(frozen=True)
class Host:
    """A network namespace that stands for a host; ``underlay`` is its address on ``eth1``."""

    namespace: str
    underlay: str

    @classmethod
    def pair(cls) -> tuple[Host, Host]:
        """Two hosts with a wire between them."""
        short = uuid.uuid4().hex[:8]
        one, two = cls(f"sgh-{short}-a", "10.99.0.1"), cls(f"sgh-{short}-b", "10.99.0.2")
        for host in (one, two):
            run("ip", "netns", "add", host.namespace)
        run(
            *("ip", "-n", one.namespace, "link", "add", "name", "eth1", "type", "veth"),
            *("peer", "name", "eth1", "netns", two.namespace),
        )
        for host in (one, two):
            batch = f"address add {host.underlay}/24 dev eth1\nlink set eth1 up\nlink set lo up\n"
            run("ip", "-n", host.namespace, "-batch", "-", data=batch)
        return one, two

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Have this thread, and the commands that it starts, on the host.

        Only the network is the host's: files, processes and names of namespaces are everybody's,
        and so is what the test has to give different names anyway.
        """
        before = os.open(_OWN, os.O_RDONLY)
        inside = os.open(f"/run/netns/{self.namespace}", os.O_RDONLY)
        try:
            _enter(inside)
            try:
                yield
            finally:
                _enter(before)
        finally:
            os.close(inside)
            os.close(before)

    def links(self) -> set[str]:
        """The names of the host's interfaces."""
        return {
            link["ifname"] for link in json.loads(run("ip", "-n", self.namespace, "-j", "link"))
        }

    def close(self) -> None:
        run("ip", "netns", "del", self.namespace)


def _enter(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
