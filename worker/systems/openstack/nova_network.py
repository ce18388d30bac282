"""nova-network through Nova's API, up to microversion 2.35 (docs/facts.md, "nova-network").

Nova dropped these calls: from microversion 2.36 they are 404, reserving is gone from Nova 18, and
networks are gone from Nova 21. Whatever tells of that becomes one sentence here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from keystoneauth1.adapter import Adapter
from openstack import exceptions as sdk
from openstack.connection import Connection
from pydantic import Field

from worker.errors import ErrorCode, Fatal
from worker.systems.openstack.client import Missing, OpenStack, OpenStackOptions

MICROVERSION: Final = "2.35"
_FAILED: Final = 400
_NO_MORE: Final = frozenset({406, 410})


class NovaOptions(OpenStackOptions):
    """Options of a backend to find Nova."""

    compute_endpoint: str | None = Field(
        None,
        description="Nova's URL, such as `https://host:8774/v2.1`; without it the one in "
        "Keystone's catalog.",
    )


@dataclass(frozen=True, slots=True)
class NovaNetwork:
    """A network of nova-network; ``vlan`` and ``mtu`` are None where it has none."""

    id: str
    label: str
    cidr: str
    gateway: str | None
    dhcp_server: str | None
    vlan: int | None
    mtu: int | None
    project_id: str | None

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """Read one of the API's documents."""
        vlan, mtu = document.get("vlan"), document.get("mtu")
        return cls(
            id=document["id"],
            label=document["label"],
            cidr=document["cidr"],
            gateway=document.get("gateway"),
            dhcp_server=document.get("dhcp_server"),
            vlan=int(vlan) if vlan else None,
            mtu=int(mtu) if mtu else None,
            project_id=document.get("project_id"),
        )


@dataclass(frozen=True, slots=True)
class FixedAddress:
    """A fixed address as nova-network describes it."""

    reserved: bool
    in_use: bool
    """Whether an instance has it; reserving it does not change that."""


class NovaNetworks:
    """Networks and fixed addresses of one Nova.

    Every call raises the errors of :mod:`worker.systems.openstack.client`, about ``about``,
    and :class:`~worker.errors.Fatal` (``configuration``) where Nova no longer has nova-network.
    """

    def __init__(self, options: NovaOptions) -> None:
        self._options = options
        self._cloud = OpenStack(options, ErrorCode.NETWORK_FAILED)

    def network(self, network_id: str, *, about: str) -> NovaNetwork:
        """Return a network."""
        try:
            document = self._ask("read a network", f"/os-networks/{network_id}", about=about)
        except Missing:
            self.networks(about=about)
            raise Fatal(
                f"There is no nova-network {network_id}; correct the share network's "
                f"nova_network_id.",
                object=about,
                code=ErrorCode.NETWORK_FAILED,
            ) from None
        if document["network"].get("cidr") is None:
            raise self._gone("gives its networks no CIDR", about)
        return NovaNetwork.of(document["network"])

    def networks(self, *, about: str) -> tuple[NovaNetwork, ...]:
        """Return all networks that have IPv4 addresses."""
        try:
            documents = self._ask("list networks", "/os-networks", about=about)["networks"]
        except Missing:
            raise self._gone("answers 404 to /os-networks", about) from None
        return tuple(NovaNetwork.of(one) for one in documents if one.get("cidr") is not None)

    def create(
        self, wanted: Mapping[str, Any], *, about: str, guard: Callable[[], None]
    ) -> NovaNetwork:
        """Make a network; ``Taken`` when its addresses or VLAN are another network's."""
        body = {"network": dict(wanted)}
        answer = self._change(
            "make a network", "POST", "/os-networks", body, about=about, guard=guard
        )
        return NovaNetwork.of(answer["network"])

    def delete(self, network: NovaNetwork, *, about: str, guard: Callable[[], None]) -> None:
        """Take a network from its project and delete it; gone is fine."""
        path = f"/os-networks/{network.id}"
        try:
            if network.project_id is not None:
                doing, body = "disassociate a network", {"disassociate": None}
                self._change(doing, "POST", f"{path}/action", body, about=about, guard=guard)
            self._change("delete a network", "DELETE", path, None, about=about, guard=guard)
        except Missing:
            return

    def fixed_address(self, address: str, *, about: str) -> FixedAddress | None:
        """Return what is known of an address; None where it belongs to no network."""
        try:
            found = self._ask("read an address", f"/os-fixed-ips/{address}", about=about)
        except Missing:
            return None
        document = found["fixed_ip"]
        in_use = document["host"] is not None or document["hostname"] is not None
        return FixedAddress(document["reserved"], in_use)

    def reserve(self, address: str, *, about: str, guard: Callable[[], None]) -> None:
        """Have nova-network give the address to no instance.

        Neither atomic nor exclusive: it succeeds for an address that is reserved or in use.
        """
        self._fixed_action(address, "reserve", about, guard)

    def unreserve(self, address: str, *, about: str, guard: Callable[[], None]) -> None:
        """Unreserve an address; succeed when it is gone with its network."""
        try:
            self._fixed_action(address, "unreserve", about, guard)
        except Missing:
            return

    def _fixed_action(
        self, address: str, action: str, about: str, guard: Callable[[], None]
    ) -> None:
        path = f"/os-fixed-ips/{address}/action"
        self._change(f"{action} {address}", "POST", path, {action: None}, about=about, guard=guard)

    def _ask(self, doing: str, path: str, *, about: str) -> Any:
        return self._cloud.ask(
            doing, lambda connection: self._answer(connection, "GET", path, None), about=about
        )

    def _change(
        self,
        doing: str,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        *,
        about: str,
        guard: Callable[[], None],
    ) -> Any:
        return self._cloud.change(
            doing,
            lambda connection: self._answer(connection, method, path, body),
            about=about,
            guard=guard,
        )

    def _answer(
        self, connection: Connection, method: str, path: str, body: Mapping[str, Any] | None
    ) -> Any:
        nova = Adapter(
            connection.session,
            service_type="compute",
            interface=self._options.interface,
            region_name=self._options.region_name,
            endpoint_override=self._options.compute_endpoint,
            default_microversion=MICROVERSION,
            raise_exc=False,
        )
        response = nova.request(path, method, json=body)
        if response.status_code in _NO_MORE:
            raise self._gone(f"answers {response.status_code} to {path}", "")
        if response.status_code >= _FAILED:
            sdk.raise_from_response(response)
        return response.json() if response.content else None

    def _gone(self, said: str, about: str) -> Fatal:
        return Fatal(
            f"This Nova {said} at microversion {MICROVERSION}: it has no nova-network any more "
            f"(Nova 17 was the last with all of it). Use network helper neutron.",
            object=about,
            code=ErrorCode.CONFIGURATION,
        )
