"""A real dnsmasq for tests: it lives in one network namespace, the relay that asks it in another.

::

    <name>s  dnsmasq 10.66.0.1 --- veth --- 10.66.0.2  <name>r  relay 10.77.0.1 (the share network)

Its lease file may be half written when it is read, so what it holds is told from its log.
"""

from __future__ import annotations

import re
import subprocess
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.support.pace import limit
from tests.support.services import Process, require, require_root
from worker.systems.network.dhcp import DhcpServer, Relay
from worker.systems.network.dhcp_messages import Kind, client_of

RELAY: Final = "10.77.0.1"
ENDPOINT: Final = "10.66.0.1"
_SYNCHRONISED = client_of("the tests", 0)


class Dnsmasq:
    """A DHCP server that knows one network, 10.77.0.0/24; nothing of it is left after the with."""

    def __init__(self, directory: Path, name: str) -> None:
        require_root()
        self.program = require("dnsmasq")
        require("nsenter")
        self.server_namespace, self.relay_namespace = f"{name}s", f"{name}r"
        self._links = f"{name}0", f"{name}1"
        self._directory = directory
        self._process: Process | None = None
        self._past = ""

    def __enter__(self) -> Self:
        (there, here), (first, second) = (
            (self.server_namespace, self.relay_namespace),
            self._links,
        )
        for namespace in (there, here):
            _ip("netns", "add", namespace)
        _ip("link", "add", first, "netns", there, *("type", "veth", "peer", second, "netns", here))
        for namespace, link, address in ((there, first, ENDPOINT), (here, second, "10.66.0.2")):
            _ip("-n", namespace, "address", "add", f"{address}/24", "dev", link)
            _ip("-n", namespace, "link", "set", link, "up")
            _ip("-n", namespace, "link", "set", "lo", "up")
        _ip("-n", here, "address", "add", f"{RELAY}/32", "dev", "lo")
        _ip("-n", there, "route", "add", "10.77.0.0/24", "via", "10.66.0.2")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.close()
        _ip("-n", self.server_namespace, "link", "del", self._links[0])
        for namespace in (self.server_namespace, self.relay_namespace):
            _ip("netns", "del", namespace)

    def start(self, first: int = 100, last: int = 149, *options: str, forget: bool = True) -> Self:
        """(Re)start it with the addresses 10.77.0.<first> to <last>; leases are of two minutes."""
        if self._process is not None:
            self._past += self._process.output()
            self._process.close()
        leases = self._directory / "leases"
        if forget:
            leases.unlink(missing_ok=True)
            self._past = ""
        self._process = Process(
            (
                *("nsenter", f"--net=/run/netns/{self.server_namespace}", self.program),
                *("--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root"),
                *("--pid-file=", f"--dhcp-leasefile={leases}", "--log-facility=-"),
                f"--dhcp-range=10.77.0.{first},10.77.0.{last},255.255.255.0,2m",
                *(options or ("--no-ping",)),
            ),
            log=self._directory / "dnsmasq.log",
        ).start("IP range 10.77.0")
        return self

    @property
    def process(self) -> Process:
        assert self._process is not None, "It was not started."
        return self._process

    def stop(self) -> None:
        """End it; what it held is still in its lease file."""
        self._past += self.process.output()
        self.process.close()
        self._process = None

    @property
    def relay(self) -> Relay:
        return Relay(RELAY, self.relay_namespace, 2.0)

    def log(self) -> str:
        """What it has said since it last forgot its leases."""
        return self._past + ("" if self._process is None else self._process.output())

    def said(self, kind: str, address: str) -> int:
        """How often it has logged a message of a kind about an address."""
        return len(re.findall(rf"DHCP{kind}\(\w+\) {re.escape(address)} ", self.log()))

    def leases(self) -> dict[str, str]:
        """What it holds: MAC addresses by address, after all that was sent to it by now."""
        self._synchronise()
        held: dict[str, str] = {}
        for kind, address, mac in re.findall(
            r"DHCP(ACK|RELEASE)\(\w+\) (\S+) ([0-9a-f:]{17})", self.log()
        ):
            if kind == "ACK" and address != RELAY:
                held[address] = mac
            elif held.get(address) == mac:
                del held[address]
        return held

    def _synchronise(self) -> None:
        """It takes one message after the other: once it answers this one, it has read the rest."""
        server = DhcpServer(ENDPOINT, 67, self.relay, "the tests", lambda: None)
        answer, _ = server._ask(
            Kind.INFORM, {Kind.ACK}, _SYNCHRONISED, holds=IPv4Address(RELAY), requested=None
        )
        assert answer is not None, self.log()


def _ip(*arguments: str) -> None:
    subprocess.run(("ip", *arguments), check=True, timeout=limit())
