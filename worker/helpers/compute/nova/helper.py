"""Share servers as virtual machines of Nova, on Neutron ports.

Nova creates any number of machines with the same name, but attaches only one to a port. So a
machine carries the share server's id in its name and metadata, the helper looks for it before it
creates one, and of two machines requested at the same moment it deletes the one without the port.

Nova keeps a port that it did not create when the machine is deleted. It attaches only ports without
a device id, which is why the helper first clears the share server's id on the port.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Final

from openstack.compute.v2.server import Server
from openstack.connection import Connection
from openstack.network.v2.port import Port
from pydantic import Field

from worker.errors import ErrorCode, Fatal, NotReady, ObjectKind, Retryable, StepError
from worker.failpoints import failpoint
from worker.helpers.compute.base import ComputeHelper, Reachable
from worker.helpers.compute.machines import (
    SshOptions,
    boot_data,
    check_reachable,
    ssh_attributes,
    ssh_shell,
)
from worker.helpers.compute.nova.options import Choices, NovaChoices
from worker.model import (
    NetworkInfo,
    OwnedResource,
    OwnerKind,
    RequestContext,
    SecurityService,
    ServerStatus,
    ShareNetwork,
    ShareServer,
    ShareServerDetails,
)
from worker.plugin import Audit, BackendContext, Checked, Options, placeholder_server
from worker.systems.openstack.client import Missing, OpenStack, ServerCalls, Taken, no_room, seconds
from worker.systems.shell.base import Shell

_OWNER: Final = "share_server"
"""The metadata key with the id of the machine's share server."""
_BACKEND: Final = "backend"
_PREFIX: Final = "sw-"
_GONE: Final = frozenset({"DELETED", "SOFT_DELETED"})
"""States of a deleted machine that Nova still lists."""


class NovaOptions(NovaChoices, SshOptions):
    """Options of the Nova helper."""

    config_drive: bool = Field(
        True,
        description="Whether the machine gets its user data on a drive; off: it asks the metadata "
        "service, which its network must reach.",
    )
    poll_interval: float = Field(
        3.0, gt=0, description="Seconds between checks of a machine that starts or is deleted."
    )


class NovaComputeHelper(ComputeHelper, Reachable, Checked, Audit):
    """Creates share servers as virtual machines of Nova."""

    OptionsModel: ClassVar[type[Options]] = NovaOptions
    options: NovaOptions
    needs_ports: ClassVar[bool] = True

    def __init__(self, backend: BackendContext, options: Options) -> None:
        super().__init__(backend, options)
        self._nova = OpenStack(self.options, ErrorCode.COMPUTE_FAILED)
        self._choices = Choices(self.options, self._nova)

    def check(self) -> None:
        """Log in, look up the objects named in the options, and read the private key."""
        self._choices.look_up(ObjectKind.BACKEND.ref(self.backend.name))
        boot_data(self.options, "check")

    def get_share_server(
        self,
        context: RequestContext,
        share_server: ShareServer,
        share_network: ShareNetwork,
        network_info: NetworkInfo,
        security_services: Sequence[SecurityService],
    ) -> ShareServerDetails:
        """Implement :meth:`ComputeHelper.get_share_server`."""
        del (
            share_network,
            security_services,
        )  # the ports determine the network; the driver joins domains
        work = _Work(self._nova, context, share_server)
        machine = self._machine(work, network_info)
        try:
            ports = self._check_runs(work, machine, network_info)
            address = self._management_address(work, ports) or network_info.addresses[0]
            attributes = ssh_attributes(self.options, share_server.id, address=address)
            check_reachable(self.options, share_server.id, attributes, server_id=machine.id)
        except StepError as error:
            error.share_server_id = machine.id
            raise
        return ShareServerDetails(machine.id, network_info.addresses, attributes)

    def delete_share_server(self, context: RequestContext, share_server: ShareServer) -> None:
        """Implement :meth:`ComputeHelper.delete_share_server`."""
        work = _Work(self._nova, context, share_server)
        machines = work.machines()
        for machine in machines:
            work.delete(machine)
            failpoint("nova.after_delete")
        if machines:
            raise self._not_yet(work, machines[0], "is being deleted")

    def shell(self, share_server: ShareServer) -> Shell:
        """Implement :meth:`Reachable.shell`."""
        return ssh_shell(self.options, share_server)

    def owned(self, context: RequestContext) -> Iterator[OwnedResource]:  # noqa: ARG002 - it only reads
        """List the machines that carry a share server's id and this backend's name."""
        machines = self._nova.ask(
            "list our machines",
            lambda c: list(c.compute.servers(name=f"^{_PREFIX}")),
            about=ObjectKind.BACKEND.ref(self.backend.name),
        )
        for machine in machines:
            owner = machine.metadata.get(_OWNER)
            ours = machine.metadata.get(_BACKEND) == self.backend.name
            if ours and _is_machine_of(machine, owner) and machine.status not in _GONE:
                created = seconds(machine.created_at)
                yield OwnedResource("machine", machine.id, OwnerKind.SHARE_SERVER, owner, created)

    def remove_orphan(self, context: RequestContext, owned: OwnedResource) -> None:
        """Delete the share server's machines and wait until Nova has deleted them."""
        self.delete_share_server(context, placeholder_server(self.backend, owned))

    def _machine(self, work: _Work, network_info: NetworkInfo) -> Server:
        """Return the share server's machine; create it, or delete surplus machines."""
        machines = work.machines()
        if not machines:
            raise self._not_yet(work, self._boot(work, network_info), "was just asked for")
        if len(machines) > 1:
            holders = {port.device_id for port in work.ports(network_info)}
            recorded = work.server.server_id
            kept = min(
                machines,
                key=lambda m: (m.id != recorded, m.id not in holders, m.created_at, m.id),
            )
            for machine in machines:
                if machine is not kept:
                    work.delete(machine)
                    failpoint("nova.after_extra_deleted")
            raise self._not_yet(work, kept, "was asked for twice, and the other one goes")
        return machines[0]

    def _boot(self, work: _Work, network_info: NetworkInfo) -> Server:
        server = work.server
        if server.status is ServerStatus.ACTIVE:
            raise work.failed(
                "Nova has no machine of it any more, and what was on that went with it; delete "
                "its shares, or restore the machine under its name."
            )
        about = ObjectKind.SHARE_SERVER.ref(server.id)
        chosen = self._choices.look_up(about)
        networks: list[dict[str, str]] = [{"port": port} for port in network_info.ports]
        if chosen.management_network is not None:
            networks.append({"uuid": chosen.management_network})
        user_data = boot_data(self.options, server.id)
        attributes = {
            **chosen.attributes,
            "name": machine_name(server.id),
            "metadata": {_OWNER: server.id, _BACKEND: self.backend.name},
            "networks": networks,
            "user_data": base64.b64encode(user_data.encode()).decode(),
            "config_drive": self.options.config_drive,
        }
        for port in work.ports(network_info):
            if port.device_id == server.id:
                work.hand_over(port)
                failpoint("nova.after_port")
        try:
            return work.create(attributes)
        except Taken as error:
            machines = work.machines()  # an earlier attempt's request was carried out meanwhile
            if not machines:
                raise error from None
            return machines[0]

    def _check_runs(
        self, work: _Work, machine: Server, network_info: NetworkInfo
    ) -> Sequence[Port]:
        """Return the machine's ports once it runs on the share server's ports."""
        if machine.task_state == "deleting":
            raise self._not_yet(work, machine, "is being deleted")
        if machine.status == "ERROR":
            raise self._failed(work, machine)
        if machine.status == "SHUTOFF" and machine.task_state is None:
            work.start(machine)
        if machine.status != "ACTIVE":
            raise self._not_yet(work, machine, f"is in state {machine.status}")
        ports = work.ports_of(machine)
        if not set(network_info.ports) <= {port.id for port in ports}:
            # When Nova gives up one of two machines, it also detaches the ports of the other one.
            lost = f"Machine {machine.id} runs without the ports of the share server."
            raise self._failed(work, machine, lost)
        return ports

    def _failed(self, work: _Work, machine: Server, reason: str = "") -> StepError:
        """Return the error for a machine in state ERROR; retryable if a new machine may succeed."""
        said = str((machine.fault or {}).get("message", "")) or "Nova does not say why."
        failure = work.failed(reason or f"Machine {machine.id} is in state ERROR: {said}")
        if no_room(said):
            failure.code = ErrorCode.COMPUTE_EXHAUSTED
            return failure
        if work.server.status is ServerStatus.ACTIVE:
            return failure
        work.delete(machine)
        return Retryable(failure.message, object=failure.object, code=failure.code)

    def _management_address(self, work: _Work, ports: Sequence[Port]) -> str | None:
        """Return the machine's management address, if it has a management network."""
        if self.options.management_network is None:
            return None
        wanted = self._choices.management_network(f"share_server {work.server.id}")
        found = [port.fixed_ips[0]["ip_address"] for port in ports if port.network_id == wanted]
        if not found:
            raise work.failed(f"Its machine has no port on management network {wanted}.")
        return str(found[0])

    def _not_yet(self, work: _Work, machine: Server, state: str) -> NotReady:
        return NotReady(
            f"Machine {machine.id} of share server {work.server.id} {state}.",
            retry_after=self.options.poll_interval,
            share_server_id=machine.id,
        )


class _Work(ServerCalls):
    """Calls of Nova and Neutron for one share server, in one attempt."""

    def failed(self, sentence: str) -> Fatal:
        """Return the error for a share server that cannot serve."""
        return Fatal(
            f"Share server {self.server.id} does not serve. {sentence}",
            object=self.about,
            code=ErrorCode.COMPUTE_FAILED,
        )

    def machines(self) -> list[Server]:
        """Find the share server's machines: the recorded one, and those that carry its id."""
        found = self.ask(
            f"list the machines of share server {self.server.id}", self._bearing_the_name
        )
        recorded = self.server.server_id
        if recorded is not None and recorded not in {machine.id for machine in found}:
            try:
                found.append(
                    self.ask(f"read machine {recorded}", lambda c: c.compute.get_server(recorded))
                )
            except Missing:
                return found
        return [machine for machine in found if machine.status not in _GONE]

    def _bearing_the_name(self, connection: Connection) -> list[Server]:
        name = machine_name(self.server.id)
        return [
            machine
            for machine in connection.compute.servers(name=f"^{name}$")  # Nova expects a pattern
            if _is_machine_of(machine, self.server.id)
        ]

    def create(self, attributes: dict[str, Any]) -> Server:
        """Request a machine, unless an earlier attempt of this call succeeded."""

        def create(connection: Connection) -> Server:
            machines = self._bearing_the_name(connection)
            return machines[0] if machines else connection.compute.create_server(**attributes)

        machine = self.change(f"boot machine {attributes['name']}", create)
        failpoint("nova.after_create")
        return machine

    def start(self, machine: Server) -> None:
        """Start a machine that is shut down."""
        self.change(f"start machine {machine.id}", lambda c: c.compute.start_server(machine.id))

    def delete(self, machine: Server) -> None:
        """Request the deletion of a machine; succeed when it is gone."""
        self.change(
            f"delete machine {machine.id}",
            lambda c: c.compute.delete_server(machine.id, ignore_missing=True),
        )

    def ports(self, network_info: NetworkInfo) -> list[Port]:
        """Return the share server's ports in Neutron, attached to a machine or not."""
        wanted = network_info.ports
        ports = self.ask(
            f"list ports {', '.join(wanted)}", lambda c: list(c.network.ports(id=list(wanted)))
        )
        if missing := sorted(set(wanted) - {port.id for port in ports}):
            raise self.failed(f"Neutron has no port {', '.join(missing)} any more.")
        return ports

    def ports_of(self, machine: Server) -> list[Port]:
        """Return all ports of a machine."""
        return self.ask(
            f"list the ports of machine {machine.id}",
            lambda c: list(c.network.ports(device_id=machine.id)),
        )

    def hand_over(self, port: Port) -> None:
        """Clear the device id of a port, so that Nova accepts it."""
        self.change(
            f"hand port {port.id} over to Nova",
            lambda c: c.network.update_port(port.id, device_id=""),
        )


def machine_name(server_id: str) -> str:
    """Return the name of a share server's machine."""
    return f"{_PREFIX}{server_id}"


def _is_machine_of(machine: Server, server_id: str | None) -> bool:
    """Return whether a machine carries a share server's id in both its name and its metadata."""
    return (
        server_id is not None
        and machine.name == machine_name(server_id)
        and machine.metadata.get(_OWNER) == server_id
    )
