"""Share servers on bare metal, by Ironic.

A share server is the node that Ironic assigns to the allocation ``sw-<server id>``. The
allocation's UUID is the server's id, and the node has it as its instance id as long as it is ours.
So a later attempt finds the allocation and continues the work of an earlier one, and the helper
undeploys only the node of that allocation. Others may get the same node later, so its own id is
recorded for people and only used to read the node.

Undeploying a node detaches its VIFs and ends its allocation. The helper does not wait for the
cleaning of the node that may follow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Final, Self

from openstack.baremetal.v1.allocation import Allocation
from openstack.baremetal.v1.node import Node
from pydantic import Field, model_validator

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
from worker.model import (
    NetworkInfo,
    OwnedResource,
    OwnerKind,
    RequestContext,
    SecurityService,
    ShareNetwork,
    ShareServer,
    ShareServerDetails,
)
from worker.plugin import Audit, BackendContext, Checked, Options, placeholder_server
from worker.systems.openstack.client import (
    Missing,
    OpenStack,
    OpenStackOptions,
    ServerCalls,
    Taken,
    seconds,
)
from worker.systems.shell.base import Shell

_OWNER: Final = "share_server"
"""The key of an allocation's extra data with the id of its share server."""
_BACKEND: Final = "backend"
_ALLOCATING: Final = 0.5
"""Seconds in which Ironic has usually chosen a node."""
_IDLE: Final = frozenset({"available", "manageable", "enroll"})
"""States of a node on which nothing is deployed."""
_DEPLOYING: Final = frozenset({"deploying", "wait call-back", "deploy hold"})
_UNDEPLOYING: Final = frozenset({"deleting", "cleaning", "clean wait", "clean hold"})


class IronicOptions(OpenStackOptions, SshOptions):
    """Options of the Ironic helper."""

    resource_class: str = Field(
        min_length=1, max_length=80, description="The resource class of the nodes to take."
    )
    traits: tuple[str, ...] = Field(
        (), description="Traits that a node must have; Ironic deploys by them too."
    )
    image: str = Field(
        pattern=r"^(https?://\S+|file:///\S+|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})$",
        description="The image to deploy: its id in Glance, or its URL (`http`, `https`, `file`). "
        "It has cloud-init.",
    )
    image_checksum: str | None = Field(
        None, description="The checksum of an image by URL, or the URL of a file with it."
    )
    instance_info: dict[str, str | int] = Field(
        default_factory=dict,
        description="What else Ironic needs to know to deploy the image, such as `root_gb`, or "
        "`kernel` and `ramdisk`.",
    )
    poll_interval: float = Field(
        5.0, gt=0, description="Seconds between looks at a node that is deployed or undeployed."
    )

    @model_validator(mode="after")
    def _a_url_needs_a_checksum(self) -> Self:
        if self.image.startswith("http") and self.image_checksum is None:
            raise ValueError("an image by URL needs image_checksum: Ironic refuses it otherwise")
        return self


class IronicComputeHelper(ComputeHelper, Reachable, Checked, Audit):
    """Creates share servers on bare metal nodes, by Ironic."""

    OptionsModel: ClassVar[type[Options]] = IronicOptions
    options: IronicOptions
    needs_ports: ClassVar[bool] = True

    def __init__(self, backend: BackendContext, options: Options) -> None:
        super().__init__(backend, options)
        self._ironic = OpenStack(self.options, ErrorCode.COMPUTE_FAILED)

    def check(self) -> None:
        """Log in, and check that a node has the resource class and the traits."""
        wanted, traits = self.options.resource_class, set(self.options.traits)
        nodes = self._ironic.ask(
            f"list the nodes of resource class {wanted}",
            lambda c: list(c.baremetal.nodes(resource_class=wanted, fields=["uuid", "traits"])),
            about=ObjectKind.BACKEND.ref(self.backend.name),
        )
        if not nodes:
            raise Fatal(
                f"Ironic has no node of resource class {wanted}, or hides them from the backend's "
                f"user; correct resource_class, or the user's role.",
                code=ErrorCode.CONFIGURATION,
            )
        if not any(traits <= set(node.traits or ()) for node in nodes):
            raise Fatal(
                f"None of the {len(nodes)} nodes of resource class {wanted} has the traits "
                f"{', '.join(sorted(traits))}; correct traits.",
                code=ErrorCode.CONFIGURATION,
            )

    def get_share_server(
        self,
        context: RequestContext,
        share_server: ShareServer,
        share_network: ShareNetwork,
        network_info: NetworkInfo,
        security_services: Sequence[SecurityService],
    ) -> ShareServerDetails:
        """Implement :meth:`ComputeHelper.get_share_server`."""
        del share_network, security_services  # its ports say where; its driver asks directories
        work = _Work(self._ironic, context, share_server)
        node = work.node_of(self._allocation(work))
        try:
            self._deploy(work, node, network_info)
        except StepError as error:
            error.share_server_id = node.id
            raise
        address = network_info.addresses[0]
        attributes = ssh_attributes(self.options, share_server.id, address=address)
        check_reachable(self.options, share_server.id, attributes, server_id=node.id)
        return ShareServerDetails(
            server_id=node.id,
            addresses=network_info.addresses,
            attributes={**attributes, "allocation": allocation_name(share_server.id)},
        )

    def delete_share_server(self, context: RequestContext, share_server: ShareServer) -> None:
        """Implement :meth:`ComputeHelper.delete_share_server`.

        Raises :class:`~worker.errors.NotReady` while the node is undeployed.
        """
        work = _Work(self._ironic, context, share_server)
        allocation = work.allocation()
        if allocation is None:
            self._check_undeployed(work)
        elif allocation.node_id is None:
            work.release(allocation)
        else:
            self._release_reference(work, allocation)

    def shell(self, share_server: ShareServer) -> Shell:
        """Implement :meth:`Reachable.shell`."""
        return ssh_shell(self.options, share_server)

    def owned(self, context: RequestContext) -> Iterator[OwnedResource]:  # noqa: ARG002 - it only reads
        """List the allocations that carry a share server's id and this backend's name.

        Every node of ours has one, and no other resource of ours outlives it.
        """
        allocations = self._ironic.ask(
            "list our allocations",
            lambda c: list(c.baremetal.allocations()),
            about=ObjectKind.BACKEND.ref(self.backend.name),
        )
        for allocation in allocations:
            extra = allocation.extra or {}
            owner = extra.get(_OWNER)
            ours = extra.get(_BACKEND) == self.backend.name
            if ours and owner is not None and allocation.name == allocation_name(owner):
                created = seconds(allocation.created_at)
                yield OwnedResource(
                    "allocation", allocation.id, OwnerKind.SHARE_SERVER, owner, created
                )

    def remove_orphan(self, context: RequestContext, owned: OwnedResource) -> None:
        """Undeploy the allocation's node and wait until that is done."""
        self.delete_share_server(context, placeholder_server(self.backend, owned))

    def _allocation(self, work: _Work) -> Allocation:
        """Return the share server's allocation once it has a node; create it if missing."""
        allocation = work.allocation() or work.allocate(self.options)
        failpoint("ironic.after_allocation")
        if allocation.state == "error":
            error = work.failed(f"Ironic has no node for it: {allocation.last_error}")
            error.code = ErrorCode.COMPUTE_EXHAUSTED
            raise error
        if allocation.state != "active":
            raise NotReady(
                f"Ironic still chooses a node for share server {work.server.id}.",
                retry_after=_ALLOCATING,
            )
        return allocation

    def _deploy(self, work: _Work, node: Node, network_info: NetworkInfo) -> None:
        """Attach the ports to the node and deploy it; return once both are done."""
        state = node.provision_state
        if state in _DEPLOYING or (node.reservation and state in {"available", "active"}):
            raise self._busy(work, node)
        if state not in {"available", "active"}:
            raise work.failed(
                f"Node {node.id} is {state} instead of deployed: {node.last_error or 'no reason'}"
            )
        if state == "available" and node.is_maintenance:
            raise work.failed(
                f"Node {node.id} went into maintenance: {node.maintenance_reason or 'no reason'}"
            )
        self._attach(work, node, network_info)
        if state == "available":
            self._start(work, node)
            failpoint("ironic.after_deploy")
            raise self._busy(work, node)

    def _attach(self, work: _Work, node: Node, network_info: NetworkInfo) -> None:
        attached = work.vifs(node)
        for port in network_info.ports:
            if port not in attached:
                work.attach(node, port)
                failpoint("ironic.after_vif")

    def _start(self, work: _Work, node: Node) -> None:
        options = self.options
        told: dict[str, Any] = {
            "image_source": options.image,
            "display_name": allocation_name(work.server.id),
            **options.instance_info,
        }
        if options.image_checksum is not None:
            told["image_checksum"] = options.image_checksum
        # Each field separately, because Ironic keeps the allocation's traits there too.
        patch = [
            {"op": "add", "path": f"/instance_info/{name}", "value": value}
            for name, value in told.items()
        ]
        work.change(
            f"tell node {node.id} its image",
            lambda c: c.baremetal.patch_node(node, patch, retry_on_conflict=False),
        )
        # Ironic adds the network data itself: it knows which card has which port.
        drive: dict[str, object] = {
            "meta_data": {"uuid": work.server.id, "hostname": allocation_name(work.server.id)},
            "user_data": boot_data(options, work.server.id),
        }
        work.change(
            f"deploy node {node.id}",
            lambda c: c.baremetal.set_node_provision_state(node, "active", config_drive=drive),
        )

    def _release_reference(self, work: _Work, allocation: Allocation) -> None:
        """Undeploy the allocation's node, or only release the allocation if nothing is deployed."""
        node = work.node_of(allocation)
        state = node.provision_state
        if state in _UNDEPLOYING or state == "deploying" or node.reservation:
            raise self._busy(work, node)
        if state in _IDLE:
            for port in work.vifs(node):
                work.detach(node, port)
            if node.instance_info:
                forget = [{"op": "replace", "path": "/instance_info", "value": {}}]
                work.change(
                    f"make node {node.id} forget its image",
                    lambda c: c.baremetal.patch_node(node, forget, retry_on_conflict=False),
                )
            work.release(allocation)
            return
        # Keep the reason first: the call reads the node again, and by then it is cleared.
        failed = self._not_undeployed(work, node) if state == "error" else None
        work.change(
            f"undeploy node {node.id}",
            lambda c: c.baremetal.set_node_provision_state(node, "deleted"),
        )
        failpoint("ironic.after_undeploy")
        raise failed or self._busy(work, node)

    def _check_undeployed(self, work: _Work) -> None:
        """Check that the recorded node, if nobody uses it now, is not still being undeployed."""
        if work.server.server_id is None:
            return
        node = work.node(work.server.server_id)
        if node is None or node.instance_id is not None:
            return
        if node.provision_state == "deleting":
            raise self._busy(work, node)
        if node.provision_state == "error":
            raise self._not_undeployed(work, node)

    def _busy(self, work: _Work, node: Node) -> NotReady:
        return NotReady(
            f"Node {node.id} of share server {work.server.id} is {node.provision_state}"
            + (f", locked by conductor {node.reservation}." if node.reservation else "."),
            retry_after=self.options.poll_interval,
            share_server_id=node.id,
        )

    @staticmethod
    def _not_undeployed(work: _Work, node: Node) -> Retryable:
        return Retryable(
            f"Node {node.id} could not be undeployed: {node.last_error or 'Ironic says no more'}. "
            f"It may still run as share server {work.server.id}; repair it in Ironic.",
            object=ObjectKind.SHARE_SERVER.ref(work.server.id),
            code=ErrorCode.COMPUTE_FAILED,
            share_server_id=node.id,
        )


class _Work(ServerCalls):
    """Calls of Ironic for one share server, in one attempt."""

    def failed(self, sentence: str) -> Fatal:
        """Return the error for a share server that cannot be built."""
        return Fatal(
            f"Share server {self.server.id} cannot be built. {sentence}",
            object=self.about,
            code=ErrorCode.COMPUTE_FAILED,
        )

    def allocation(self) -> Allocation | None:
        """Return the share server's allocation, or None."""
        name = allocation_name(self.server.id)
        try:
            return self.ask(f"look for {name}", lambda c: c.baremetal.get_allocation(name))
        except Missing:
            return None

    def allocate(self, options: IronicOptions) -> Allocation:
        """Request a node by creating the allocation."""
        name = allocation_name(self.server.id)
        try:
            return self.change(
                f"allocate a node of resource class {options.resource_class}",
                lambda c: c.baremetal.create_allocation(
                    id=self.server.id,
                    name=name,
                    resource_class=options.resource_class,
                    traits=list(options.traits),
                    extra={_OWNER: self.server.id, _BACKEND: self.server.backend},
                ),
            )
        except Taken as error:
            # An earlier attempt's request arrived after we had looked.
            found = self.allocation()
            if found is None:
                raise error from None
            return found

    def release(self, allocation: Allocation) -> None:
        """Delete an allocation; its node must not be deployed."""
        self.change(
            f"release {allocation.name}",
            lambda c: c.baremetal.delete_allocation(allocation.id, ignore_missing=True),
        )

    def node(self, node_id: str) -> Node | None:
        """Return a node, or None."""
        try:
            return self.ask(f"read node {node_id}", lambda c: c.baremetal.get_node(node_id))
        except Missing:
            return None

    def node_of(self, allocation: Allocation) -> Node:
        """Read an allocation's node, which Ironic does not delete before its allocation."""
        node_id = allocation.node_id
        return self.ask(f"read node {node_id}", lambda c: c.baremetal.get_node(node_id))

    def vifs(self, node: Node) -> list[str]:
        """Return the ids of the Neutron ports attached to a node."""
        return self.ask(
            f"list what is attached to node {node.id}", lambda c: c.baremetal.list_node_vifs(node)
        )

    def attach(self, node: Node, port: str) -> None:
        """Attach a Neutron port to a node."""
        self.change(
            f"attach port {port} to node {node.id}",
            lambda c: c.baremetal.attach_vif_to_node(node, port, retry_on_conflict=False),
        )

    def detach(self, node: Node, port: str) -> None:
        """Detach a Neutron port from a node; detached already is fine."""
        self.change(
            f"detach port {port} from node {node.id}",
            lambda c: c.baremetal.detach_vif_from_node(node, port),
        )


def allocation_name(server_id: str) -> str:
    """Return the name of a share server's allocation."""
    return f"sw-{server_id}"
