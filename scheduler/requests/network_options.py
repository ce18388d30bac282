"""The options of a share network. Each belongs to one kind; kinds exclude one another."""

from __future__ import annotations

from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, Field, StrictBool, model_validator

from scheduler.requests.fields import Id, Text
from worker.addressing import parse_endpoint, parse_pool, parse_subnet
from worker.errors import InvalidRequest
from worker.model import NetworkKind

OPTIONS: Final = {
    NetworkKind.NEUTRON: ("neutron_net_id", "neutron_subnet_id"),
    NetworkKind.NOVA: ("nova_network_id",),
    NetworkKind.FLAT_POOL: (
        *("flat_network_ip_pool", "flat_network_subnet", "flat_network_gateway"),
    ),
    NetworkKind.DHCP: ("dhcp_endpoint",),
    NetworkKind.MANAGED: ("managed", "cidr"),
    NetworkKind.NONE: (),
}
"""The options of each kind: the first one determines the kind, the others go with it."""


class NetworkOptions(BaseModel):
    """Source of a share network's addresses.

    Validation raises :class:`~worker.errors.InvalidRequest` itself when options contradict each
    other, because pydantic could not name the field.
    """

    neutron_net_id: Annotated[
        Id | None, Field(description="A network in Neutron, with `neutron_subnet_id`.")
    ] = None
    neutron_subnet_id: Annotated[Id | None, Field(description="A subnet of that network.")] = None
    nova_network_id: Annotated[Id | None, Field(description="A network in nova-network.")] = None
    flat_network_ip_pool: Annotated[
        Annotated[tuple[Text, ...], Field(min_length=1, max_length=1024)] | None,
        Field(description="What may be given out: CIDRs, addresses, `first-last` ranges."),
    ] = None
    flat_network_subnet: Annotated[
        Text | None,
        Field(description="The subnet of the pool; may be left out for exactly one CIDR."),
    ] = None
    flat_network_gateway: Annotated[Text | None, Field(description="The subnet's gateway.")] = None
    dhcp_endpoint: Annotated[
        Text | None,
        Field(description="A DHCP server: `host` or `host:port`, IPv6 addresses in brackets."),
    ] = None
    managed: Annotated[
        StrictBool, Field(description="The backend's network helper makes the network.")
    ] = False
    cidr: Annotated[Text | None, Field(description="The subnet of a managed network.")] = None

    @property
    def options_given(self) -> tuple[str, ...]:
        """The names of the options that are set."""
        return tuple(
            name
            for names in OPTIONS.values()
            for name in names
            if getattr(self, name) not in {None, False}
        )

    @property
    def kind(self) -> NetworkKind:
        """The kind of share network that the options determine."""
        given = self.options_given
        return next(
            (kind for kind, names in OPTIONS.items() if set(names) & set(given)), NetworkKind.NONE
        )

    def columns(self) -> dict[str, Any]:
        """Return the kind and the options as column values."""
        values = self.model_dump(include=set(NetworkOptions.model_fields) - {"managed"})
        pool = self.flat_network_ip_pool
        values["flat_network_ip_pool"] = None if pool is None else list(pool)
        return {"kind": self.kind.value, **values}

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = self.options_given
        _check_together(given)
        if self.flat_network_ip_pool is not None:
            parse_pool(
                self.flat_network_ip_pool,
                subnet=self.flat_network_subnet,
                gateway=self.flat_network_gateway,
            )
        if self.dhcp_endpoint is not None:
            parse_endpoint(self.dhcp_endpoint, "dhcp_endpoint")
        if self.cidr is not None:
            parse_subnet(self.cidr, "cidr")
        return self


def _check_together(given: tuple[str, ...]) -> None:
    """Refuse options of two kinds, and options without the one that they depend on."""
    firsts = [
        next(name for name in names if name in given)
        for names in OPTIONS.values()
        if set(names) & set(given)
    ]
    if len(firsts) > 1:
        raise InvalidRequest(
            f"{', '.join(firsts[:-1])} and {firsts[-1]} exclude each other: a share network has "
            f"one kind; give the options of one kind only.",
            field=firsts[-1],
        )
    for names in OPTIONS.values():
        for name in names[1:]:
            if name in given and names[0] not in given:
                raise InvalidRequest(
                    f"{name} goes with {names[0]} only; give both or neither.", field=name
                )
    if "neutron_net_id" in given and "neutron_subnet_id" not in given:
        raise InvalidRequest(
            "neutron_net_id goes with neutron_subnet_id; give both or neither.",
            field="neutron_subnet_id",
        )
