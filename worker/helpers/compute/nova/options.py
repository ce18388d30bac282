"""Options of a backend's machines, and the lookup of the objects that the options name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from openstack.connection import Connection
from pydantic import Field

from worker.systems.openstack.client import OpenStack, OpenStackOptions, only


class NovaChoices(OpenStackOptions):
    """The Nova helper's options that name images, flavors, networks and the like."""

    image: str = Field(
        min_length=1, description="Image of the machines, by id or name, with cloud-init."
    )
    flavor: str = Field(min_length=1, description="Flavor of the machines, by id or name.")
    key_name: str | None = Field(
        None,
        description="A key pair of the backend's user, for people to log in with; workers use the "
        "backend's own key.",
    )
    availability_zone: str | None = Field(
        None, description="Availability zone of the machines; empty: Nova chooses."
    )
    server_group: str | None = Field(
        None, description="A server group by id or name, with an affinity or anti-affinity policy."
    )
    management_network: str | None = Field(
        None,
        description="A network by id or name that workers reach: a machine gets a second port "
        "there, made and removed by Nova, and SSH goes to it. Empty: SSH goes to the share "
        "server's own address.",
    )


@dataclass(frozen=True, slots=True)
class Chosen:
    """The objects named in the options, by the ids that Nova expects."""

    attributes: dict[str, Any]
    management_network: str | None


class Choices:
    """Looks up the objects named in the options."""

    def __init__(self, options: NovaChoices, nova: OpenStack) -> None:
        self._options = options
        self._nova = nova

    def look_up(self, about: str) -> Chosen:
        """Look up every object named in the options.

        Raises :class:`~worker.errors.Fatal` for a missing or ambiguous object.
        """
        options = self._options
        attributes: dict[str, Any] = {
            "image_id": self._find("active image", options.image, _images(options.image), about),
            "flavor_id": self._find(
                "flavor", options.flavor, lambda c: c.compute.flavors(is_public="None"), about
            ),
        }
        if options.key_name is not None:
            attributes["key_name"] = self._find(
                "key pair", options.key_name, lambda c: c.compute.keypairs(), about
            )
        if options.availability_zone is not None:
            attributes["availability_zone"] = self._find(
                "available zone", options.availability_zone, _zones, about
            )
        if options.server_group is not None:
            group = self._find(
                "server group", options.server_group, lambda c: c.compute.server_groups(), about
            )
            attributes["scheduler_hints"] = {"group": group}
        return Chosen(attributes, self.management_network(about))

    def management_network(self, about: str) -> str | None:
        """Look up the management network, if the options name one."""
        named = self._options.management_network
        return None if named is None else self._find("network", named, _networks(named), about)

    def _find(
        self, kind: str, named: str, things: Callable[[Connection], Iterable[Any]], about: str
    ) -> str:
        found = self._nova.ask(
            f"look for {kind} {named}",
            lambda c: [thing for thing in things(c) if named in {thing.id, thing.name}],
            about=about,
        )
        thing = only(kind, named, found, about)
        return str(thing.id or thing.name)


def _images(named: str) -> Callable[[Connection], Iterable[Any]]:
    return lambda c: [
        image
        for which in ({"name": named}, {"id": f"in:{named}"})
        for image in c.image.images(status="active", **which)
    ]


def _zones(connection: Connection) -> Iterable[Any]:
    zones = connection.compute.availability_zones()
    return (zone for zone in zones if zone.state["available"])


def _networks(named: str) -> Callable[[Connection], Iterable[Any]]:
    return lambda c: [*c.network.networks(id=named), *c.network.networks(name=named)]
