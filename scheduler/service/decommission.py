"""``sharewright decommission``: remove a stopped service's images and mounts from this host."""

from __future__ import annotations

from scheduler.service import tree
from scheduler.service.defaults import configuration
from scheduler.service.home import Home
from worker.backends.assembly import assemble
from worker.db.networks.addresses import DatabaseAddressStore
from worker.drivers.base import Decommission
from worker.model import RequestContext


def decommission(home: Home) -> list[str]:
    """Remove the images and mounts of all backends; return the names of those that had any.

    Shares and their servers are deleted before, by request; a driver refuses while it has any.
    Raises :class:`~worker.errors.Conflict` while the service runs.
    """
    config, _ = configuration(home)
    addresses = DatabaseAddressStore(config.database.url, rest=config.engine.address_rest)
    done = []
    with tree.alone(home.path):
        for name in sorted(config.backends):
            driver = assemble(config, name, addresses).driver
            if isinstance(driver, Decommission):
                driver.decommission(RequestContext(project_id=""))
                done.append(name)
    return done
