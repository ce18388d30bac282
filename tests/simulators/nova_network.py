"""A simulator of nova-network's API as Nova 15 serves it, with the little of Keystone it needs.

It holds state, is spoken to over real HTTP, and refuses what the real one refuses:

- measured on Nova 15.1.5 (docs/facts.md): the calls and their statuses; at microversions above
  2.35 they are 404, above Nova's highest 406; `reserved` is shown from 2.4; an unknown address is
  404; reserving succeeds for an address that is reserved or in use already;
- from the source of its API and network manager: which fields a network may be made with; 409 for
  addresses or a VLAN of another network; 409 for deleting one that belongs to a project or has an
  address in use; network, gateway and broadcast address are reserved from the beginning.

What it does not have: projects' own views, floating addresses, IPv6, hosts.
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from netaddr import AddrFormatError, IPAddress, IPNetwork

USER, PASSWORD, PROJECT = "sharewright", "nova-secret", "service"
HIGHEST = (2, 42)
LAST_WITH_NETWORKS = (2, 35)
_CREATE_FIELDS = frozenset(
    {
        *("label", "cidr", "project_id", "multi_host", "gateway", "bridge", "bridge_interface"),
        *("dns1", "dns2", "mtu", "enable_dhcp", "dhcp_server", "share_address", "allowed_start"),
        *("allowed_end", "vlan", "vlan_start", "vpn_start", "fixed_cidr", "ipam"),
    }
)


class HttpError(Exception):
    """An answer that is an error, as Nova words it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class FixedIp:
    """One address of a network."""

    address: str
    cidr: str
    reserved: bool = False
    hostname: str | None = None


@dataclass
class NovaSimulator:
    """The state, and knobs for what a test wants to happen."""

    networks: dict[str, dict[str, Any]] = field(default_factory=dict)
    addresses: dict[str, FixedIp] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    logins: int = 0
    gone: bool = False
    """Nova 21 and later: 410 for whatever was nova-network's."""
    busy: int = 0
    """How many of the next calls are answered 503."""
    boots_before_reserve: set[str] = field(default_factory=set)
    """Addresses that an instance gets in the moment before they are reserved."""
    url: str = ""
    lock: threading.RLock = field(default_factory=threading.RLock)

    @contextmanager
    def served(self) -> Iterator[NovaSimulator]:
        """Serve on a free port of 127.0.0.1 while the context lasts."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"nova": self}))
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def reserved(self) -> list[str]:
        """Addresses that were reserved through the API, or by an operator."""
        with self.lock:
            return sorted(
                a.address for a in self.addresses.values() if a.reserved and not special(a)
            )

    def boot(self, address: str) -> None:
        """An instance gets the address."""
        self.addresses[address].hostname = f"vm-{address.replace('.', '-')}"

    # What the API does; each under the lock.

    def add_network(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        if set(wanted) - _CREATE_FIELDS:
            raise HttpError(400, "Additional properties are not allowed")
        if not isinstance(wanted.get("label"), str) or not 1 <= len(wanted["label"]) <= 255:
            raise HttpError(400, "'label' is a required property")
        if "cidr" not in wanted:
            raise HttpError(400, "is not valid under any of the given schemas")
        try:
            subnet = IPNetwork(wanted["cidr"])
        except AddrFormatError as error:
            raise HttpError(400, "'cidr' is not a 'cidr'") from error
        for other in self.networks.values():
            taken = IPNetwork(other["cidr"])
            if subnet.first <= taken.last and taken.first <= subnet.last:
                raise HttpError(409, f"Requested cidr ({subnet}) conflicts with existing supernet")
            if wanted.get("vlan") and other["vlan"] == int(wanted["vlan"]):
                raise HttpError(409, f"Network with VLAN {wanted['vlan']} exists already")
        gateway = wanted.get("gateway", str(subnet[1]))
        vlan = wanted.get("vlan")
        network = {
            **dict.fromkeys(("cidr_v6", "netmask_v6", "gateway_v6", "dns2", "host", "priority")),
            "id": str(uuid.uuid4()),
            "label": wanted["label"],
            "cidr": str(subnet.cidr),
            "netmask": str(subnet.netmask),
            "broadcast": str(subnet.broadcast),
            "gateway": gateway,
            "dhcp_server": wanted.get("dhcp_server", gateway),
            "dhcp_start": str(subnet[3]),
            "vlan": int(vlan) if vlan else None,
            "bridge": f"br{vlan}" if vlan else "br100",
            "mtu": wanted.get("mtu"),
            "project_id": wanted.get("project_id"),
        }
        self.networks[network["id"]] = network
        for address in subnet:
            one = FixedIp(str(address), str(subnet.cidr))
            one.reserved = special(one) or one.address == gateway
            self.addresses[one.address] = one
        return network

    def network(self, network_id: str) -> dict[str, Any]:
        if network_id not in self.networks:
            raise HttpError(404, "Network not found")
        return self.networks[network_id]

    def delete_network(self, network_id: str) -> None:
        network = self.network(network_id)
        mine = [one for one in self.addresses.values() if one.cidr == network["cidr"]]
        if network["project_id"] is not None or any(one.hostname for one in mine):
            raise HttpError(409, f"Network {network_id} is still in use.")
        for one in mine:
            del self.addresses[one.address]
        del self.networks[network_id]

    def fixed_ip(self, address: str) -> FixedIp:
        try:
            IPAddress(address)
        except AddrFormatError as error:
            raise HttpError(400, f"Fixed IP address {address} is invalid.") from error
        if address not in self.addresses:
            raise HttpError(404, f"Fixed IP not found for address {address}.")
        return self.addresses[address]

    def set_reserved(self, address: str, *, reserved: bool) -> None:
        one = self.fixed_ip(address)
        if reserved and address in self.boots_before_reserve:
            self.boots_before_reserve.discard(address)
            self.boot(address)
        one.reserved = reserved


def special(one: FixedIp) -> bool:
    """Network address, gateway and broadcast address."""
    subnet = IPNetwork(one.cidr)
    return IPAddress(one.address) in {subnet[0], subnet[1], subnet[-1]}


class _Handler(BaseHTTPRequestHandler):
    nova: NovaSimulator
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        headers: dict[str, str] = {}
        try:
            with self.nova.lock:
                if self.path.startswith("/v3"):
                    status, document, headers = self._keystone(method, body)
                else:
                    status, document = self._compute(method, body)
        except HttpError as error:
            status, document = error.status, _error(error)
        content = b"" if document is None else json.dumps(document).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _keystone(self, method: str, body: Any) -> tuple[int, Any, dict[str, str]]:
        nova = self.nova
        if method == "GET":
            links = [{"rel": "self", "href": f"{nova.url}/v3/"}]
            return 200, {"version": {"id": "v3.14", "status": "stable", "links": links}}, {}
        user = body["auth"]["identity"]["password"]["user"]
        project = body["auth"]["scope"]["project"]
        if (user["name"], user["password"], project["name"]) != (USER, PASSWORD, PROJECT):
            raise HttpError(401, "The request you have made requires authentication.")
        token = uuid.uuid4().hex
        nova.tokens.add(token)
        nova.logins += 1
        endpoint = {"region": "RegionOne", "region_id": "RegionOne", "url": f"{nova.url}/v2.1"}
        endpoints = [
            {**endpoint, "id": name, "interface": name} for name in ("public", "internal", "admin")
        ]
        document = {
            "methods": ["password"],
            "expires_at": "2999-01-01T00:00:00.000000Z",
            "issued_at": "2020-01-01T00:00:00.000000Z",
            "user": {"id": "u", "name": USER, "domain": {"id": "default", "name": "Default"}},
            "project": {"id": "p", "name": PROJECT, "domain": {"id": "default", "name": "Default"}},
            "roles": [{"id": "admin", "name": "admin"}],
            "catalog": [{"id": "c", "type": "compute", "name": "nova", "endpoints": endpoints}],
        }
        return 201, {"token": document}, {"X-Subject-Token": token}

    def _compute(self, method: str, body: Any) -> tuple[int, Any]:
        nova = self.nova
        if self.headers.get("X-Auth-Token") not in nova.tokens:
            raise HttpError(401, "The request you have made requires authentication.")
        if nova.busy:
            nova.busy -= 1
            raise HttpError(503, "Service Unavailable")
        version = self._microversion()
        if version > LAST_WITH_NETWORKS:
            raise HttpError(404, "The resource could not be found.")
        if nova.gone:
            raise HttpError(410, "This resource is no longer available.")
        collection, *rest = self.path.removeprefix("/v2.1").strip("/").split("/")
        if collection == "os-networks":
            return self._networks(method, rest, body)
        if collection == "os-fixed-ips":
            return self._fixed_ips(method, rest, body, version)
        raise HttpError(404, "The resource could not be found.")

    def _networks(self, method: str, rest: list[str], body: Any) -> tuple[int, Any]:
        nova = self.nova
        match method, rest:
            case "GET", []:
                return 200, {"networks": list(nova.networks.values())}
            case "POST", []:
                return 200, {"network": nova.add_network(body["network"])}
            case "GET", [network_id]:
                return 200, {"network": nova.network(network_id)}
            case "DELETE", [network_id]:
                nova.delete_network(network_id)
                return 202, None
            case "POST", [network_id, "action"] if body == {"disassociate": None}:
                nova.network(network_id)["project_id"] = None
                return 202, None
        raise HttpError(400, "There is no such action")

    def _fixed_ips(
        self, method: str, rest: list[str], body: Any, version: tuple[int, int]
    ) -> tuple[int, Any]:
        match method, rest:
            case "GET", [address]:
                return 200, {"fixed_ip": _shown(self.nova.fixed_ip(address), version)}
            case "POST", [address, "action"] if body in ({"reserve": None}, {"unreserve": None}):
                self.nova.set_reserved(address, reserved="reserve" in body)
                return 202, None
        raise HttpError(400, "There is no such action")

    def _microversion(self) -> tuple[int, int]:
        named = self.headers.get("OpenStack-API-Version", "").removeprefix("compute ")
        named = named or self.headers.get("X-OpenStack-Nova-API-Version") or "2.1"
        if not re.fullmatch(r"\d+\.\d+", named):
            raise HttpError(400, f"API Version String {named} is of invalid format.")
        major, minor = (int(part) for part in named.split("."))
        if not (2, 1) <= (major, minor) <= HIGHEST:
            raise HttpError(406, f"Version {named} is not supported by the API.")
        return major, minor


def _shown(one: FixedIp, version: tuple[int, int]) -> dict[str, Any]:
    host = "compute-1" if one.hostname else None
    document = {"address": one.address, "cidr": one.cidr, "hostname": one.hostname, "host": host}
    return document if version < (2, 4) else {**document, "reserved": one.reserved}


def _error(error: HttpError) -> dict[str, Any]:
    names = {400: "badRequest", 404: "itemNotFound", 409: "conflictingRequest"}
    name = names.get(error.status, "computeFault")
    return {name: {"code": error.status, "message": str(error)}}
