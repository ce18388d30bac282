"""How the fakes say what they have made; part of :mod:`worker.fakes`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from worker.errors import Retryable
from worker.fake_world import World
from worker.model import Owned, OwnerKind, RequestContext
from worker.plugin import Audit, Setting


class _Fake(Protocol):
    world: World
    setting: Setting


class FakeDriverAudit(Audit):
    """Shares and snapshots of the world."""

    def owned(self: _Fake, context: RequestContext) -> Iterable[Owned]:
        """List the backend's shares, and the snapshots of all."""
        with self.world.call("owned_by_driver", self.setting.backend, context) as change:
            shares = change.all("SELECT id FROM shares WHERE backend = ?", self.setting.backend)
            snapshots = change.all("SELECT id FROM snapshots")
        return [
            *(Owned("share", row["id"], OwnerKind.SHARE, row["id"]) for row in shares),
            *(Owned("snapshot", row["id"], OwnerKind.SNAPSHOT, row["id"]) for row in snapshots),
        ]

    def remove_orphan(self: _Fake, context: RequestContext, owned: Owned) -> None:
        """Remove it, and give its capacity back."""
        with self.world.call("remove_orphan", owned.id, context) as change:
            if owned.kind == "snapshot":
                change.write("DELETE FROM snapshots WHERE id = ?", owned.id)
                return
            change.write(
                "UPDATE pools SET taken = taken - (SELECT size FROM shares WHERE id = ?1)"
                " WHERE (backend, name) = (SELECT backend, pool FROM shares WHERE id = ?1)",
                owned.id,
            )
            change.write("DELETE FROM shares WHERE id = ?", owned.id)


class FakeComputeAudit(Audit):
    """Servers of the world."""

    def owned(self: _Fake, context: RequestContext) -> Iterable[Owned]:
        """List the backend's servers."""
        with self.world.call("owned_by_compute", self.setting.backend, context) as change:
            rows = change.all(
                "SELECT id, name, created FROM servers WHERE backend = ?", self.setting.backend
            )
        return [
            Owned("server", row["name"], OwnerKind.SHARE_SERVER, row["id"], row["created"])
            for row in rows
        ]

    def remove_orphan(self: _Fake, context: RequestContext, owned: Owned) -> None:
        """Remove it with its addresses."""
        with self.world.call("remove_orphan", owned.id, context) as change:
            change.write("DELETE FROM server_addresses WHERE server = ?", owned.owner_id)
            change.write("DELETE FROM servers WHERE id = ?", owned.owner_id)


class FakeNetworkAudit(Audit):
    """Ports and networks of the world."""

    def owned(self: _Fake, context: RequestContext) -> Iterable[Owned]:
        """List all ports and networks: they do not say whose backend's they are."""
        with self.world.call("owned_by_network", self.setting.backend, context) as change:
            ports = change.all("SELECT id, server FROM ports")
            networks = change.all("SELECT domain FROM networks")
        return [
            *(Owned("port", row["id"], OwnerKind.SHARE_SERVER, row["server"]) for row in ports),
            *(
                Owned("network", domain, OwnerKind.SHARE_NETWORK, domain.rpartition(":")[2])
                for (domain,) in networks
            ),
        ]

    def remove_orphan(self: _Fake, context: RequestContext, owned: Owned) -> None:
        """Remove it; a network that has ports is refused."""
        with self.world.call("remove_orphan", owned.id, context) as change:
            if owned.kind == "port":
                change.write("DELETE FROM ports WHERE id = ?", owned.id)
            else:
                if change.one("SELECT id FROM ports WHERE domain = ?", owned.id) is not None:
                    raise Retryable(f"There are ports on network {owned.id}; they go first.")
                change.write("DELETE FROM networks WHERE domain = ?", owned.id)
