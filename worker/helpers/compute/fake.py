"""The fake compute helper: share servers as rows of the fake world."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from worker.errors import ErrorCode, Fatal, NotReady, ObjectKind
from worker.helpers.compute.base import ComputeHelper, Watched
from worker.model import (
    NetworkInfo,
    Outage,
    OwnedResource,
    OwnerKind,
    RequestContext,
    SecurityService,
    ShareNetwork,
    ShareServer,
    ShareServerDetails,
)
from worker.plugin import Audit, BackendContext, Options
from worker.systems.fake_world import Change, Fake, FakeOptions


class FakeComputeOptions(FakeOptions):
    """Options of the fake compute helper."""

    boot_seconds: float = Field(0.0, ge=0, description="Seconds until a new server is ready.")


class FakeComputeAudit(Audit):
    """Lists and removes the share servers in the fake world."""

    def owned(self: Fake, context: RequestContext) -> Iterable[OwnedResource]:
        """List the backend's servers."""
        with self.world.call(
            "owned_by_compute", self.backend.name, context, code=ErrorCode.COMPUTE_FAILED
        ) as change:
            rows = change.all(
                "SELECT id, name, created FROM servers WHERE backend = ?", self.backend.name
            )
        return [
            OwnedResource("server", row["name"], OwnerKind.SHARE_SERVER, row["id"], row["created"])
            for row in rows
        ]

    def remove_orphan(self: Fake, context: RequestContext, owned: OwnedResource) -> None:
        """Remove the server with its addresses."""
        with self.world.call(
            "remove_orphan", owned.id, context, code=ErrorCode.COMPUTE_FAILED
        ) as change:
            change.write("DELETE FROM server_addresses WHERE server = ?", owned.owner_id)
            change.write("DELETE FROM servers WHERE id = ?", owned.owner_id)


class FakeComputeHelper(FakeComputeAudit, ComputeHelper, Watched):
    """Keeps share servers as rows of the fake world; they take a while to boot."""

    OptionsModel: ClassVar[type[Options]] = FakeComputeOptions
    options: FakeComputeOptions

    def __init__(self, backend: BackendContext, options: FakeComputeOptions) -> None:
        super().__init__(backend, options)
        self.world = options.world_of(backend)

    def get_share_server(
        self,
        context: RequestContext,
        share_server: ShareServer,
        share_network: ShareNetwork,
        network_info: NetworkInfo,
        security_services: Sequence[SecurityService],
    ) -> ShareServerDetails:
        """Create the server or find it; raise NotReady until it has booted."""
        name = _server_name(share_server)
        with self.world.call(
            "get_share_server",
            share_server.id,
            context,
            related=(share_network.id, share_server.project_id),
            delay=self.options.delay_of("get_share_server"),
            code=ErrorCode.COMPUTE_FAILED,
        ) as change:
            found = change.one("SELECT * FROM servers WHERE id = ?", share_server.id)
            if found is None:
                serves_at = self._build(change, share_server, share_network, network_info)
                change.hand(security_services, share_server.id)
            else:
                self._same_addresses(change, share_server, network_info)
                serves_at = found["serves_at"] or self._restart(change, share_server)
            change.exists = name
            remaining = serves_at - time.monotonic()
            if remaining > 0:
                change.then = NotReady(
                    f"Share server {share_server.id} boots for another {remaining:.1f} s.",
                    retry_after=remaining,
                )
        return ShareServerDetails(name, network_info.addresses, {"backend": self.backend.name})

    def delete_share_server(self, context: RequestContext, share_server: ShareServer) -> None:
        """Delete the server unless shares are on it."""
        with self.world.call(
            "delete_share_server",
            share_server.id,
            context,
            related=(share_server.share_network_id, share_server.project_id),
            delay=self.options.delay_of("delete_share_server"),
            code=ErrorCode.COMPUTE_FAILED,
        ) as change:
            name = share_server.server_id or _server_name(share_server)
            found = change.one("SELECT id FROM servers WHERE name = ?", name)
            if found is None:
                return
            share = change.one("SELECT id FROM shares WHERE server = ?", found["id"])
            if share is not None:
                raise Fatal(
                    f"Share server {share_server.id} still has share {share['id']}; delete that "
                    f"first.",
                    object=ObjectKind.SHARE_SERVER.ref(share_server.id),
                    code=ErrorCode.COMPUTE_FAILED,
                    share_server_id=name,
                )
            change.write("DELETE FROM server_addresses WHERE server = ?", found["id"])
            change.write("DELETE FROM servers WHERE id = ?", found["id"])
            change.write("DELETE FROM security WHERE server = ?", found["id"])

    def outages(self, share_servers: Sequence[ShareServer]) -> Mapping[str, Outage]:
        """Return the outages: servers that the world lost, or that stopped serving."""
        with self.world.call(
            "outages", self.backend.name, RequestContext(""), code=ErrorCode.COMPUTE_FAILED
        ) as change:
            known = {row["id"]: row["serves_at"] for row in change.all("SELECT * FROM servers")}
        found: dict[str, Outage] = {}
        for server in share_servers:
            if server.id not in known:
                found[server.id] = Outage.SERVER
            elif known[server.id] is None:
                found[server.id] = Outage.FILE_SERVER
        return found

    def _build(
        self,
        change: Change,
        server: ShareServer,
        share_network: ShareNetwork,
        info: NetworkInfo,
    ) -> float:
        domain = _domain_of(info, share_network)
        for address in info.addresses:
            holder = change.one(
                "SELECT server FROM server_addresses WHERE domain = ? AND address = ?",
                domain,
                address,
            )
            if holder is not None:
                raise Fatal(
                    f"Address {address} of share server {server.id} is held by share server "
                    f"{holder['server']}: it was given out twice.",
                    object=ObjectKind.SHARE_SERVER.ref(server.id),
                    code=ErrorCode.COMPUTE_FAILED,
                )
            change.write(
                "INSERT INTO server_addresses (domain, address, server) VALUES (?, ?, ?)",
                domain,
                address,
                server.id,
            )
        # Boot times use a clock that tests do not set wrong.
        serves_at = time.monotonic() + self.options.boot_seconds
        change.write(
            "INSERT INTO servers (id, name, backend, project, network, domain, created, serves_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            server.id,
            _server_name(server),
            self.backend.name,
            server.project_id,
            share_network.id,
            domain,
            time.time(),
            serves_at,
        )
        return serves_at

    def _restart(self, change: Change, server: ShareServer) -> float:
        serves_at = time.monotonic()
        change.write("UPDATE servers SET serves_at = ? WHERE id = ?", serves_at, server.id)
        return serves_at

    def _same_addresses(self, change: Change, server: ShareServer, info: NetworkInfo) -> None:
        rows = change.all("SELECT address FROM server_addresses WHERE server = ?", server.id)
        if {row["address"] for row in rows} != set(info.addresses):
            raise Fatal(
                f"Share server {server.id} exists already with other addresses than "
                f"{', '.join(info.addresses)}.",
                object=ObjectKind.SHARE_SERVER.ref(server.id),
                code=ErrorCode.COMPUTE_FAILED,
                share_server_id=_server_name(server),
            )


def _server_name(server: ShareServer) -> str:
    return f"fake-{server.id}"


def _domain_of(info: NetworkInfo, share_network: ShareNetwork) -> str:
    """Return where an address must be unique: as the network helper says, else its segment."""
    segment = f"{share_network.id}/{info.cidr}/{info.segmentation_id}"
    return info.attributes.get("domain", segment)
