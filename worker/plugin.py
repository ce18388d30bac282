"""What every driver and helper has in common: its options, and what it is told of its backend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from worker.model import DriverMode, OwnedResource, RequestContext, ServerStatus, ShareServer


class Options(BaseModel):
    """Base of each plug-in's own validated options; an unknown option stops the worker at start.

    Every field carries a ``description``: the operator's guide is generated from them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


@dataclass(frozen=True, slots=True)
class BackendContext:
    """What a plug-in is told about its backend: its name, its mode, its state directory.

    ``state_dir`` is a directory of the backend's own on this host for what must outlive the
    worker (records of daemons, images). Whoever first writes to it creates it. It is the same
    after a restart, and other backends do not use it.
    """

    name: str
    mode: DriverMode
    state_dir: Path
    share_network_addresses: bool = False
    """Whether a flat backend uses the addresses that a share network brings."""
    servers_elsewhere: bool = False
    """Whether share servers are machines of their own, so that what they need lies on them."""


class Checked(ABC):
    """Capability of a plug-in that checks, when a worker starts, whether its options can work."""

    @abstractmethod
    def check(self) -> None:
        """Look for what the options name, when a worker starts; nothing is changed.

        Raises :class:`~worker.errors.Fatal` when it is not there or not unambiguous: the worker
        then does not start; :class:`~worker.errors.Retryable` when the outside cannot be asked.
        """


class Audit(ABC):
    """Capability of a plug-in that lists what it has made in the external system, row by row.

    Both calls find their way without the database: by names and tags that contain a row's id.
    What bears no such mark is somebody else's and is neither listed nor touched. A driver lists
    at least one thing for every share and snapshot that exists, a helper for every share server.
    """

    @abstractmethod
    def owned(self, context: RequestContext) -> Iterable[OwnedResource]:
        """List what there is, of live rows and of others; nothing is changed.

        Raises :class:`~worker.errors.Fatal` or :class:`~worker.errors.Retryable` when it cannot
        be listed whole: half a list would look as if the other half were gone.
        """

    @abstractmethod
    def remove_orphan(self, context: RequestContext, owned: OwnedResource) -> None:
        """Remove a thing that :meth:`owned` has listed and whose row is no more; gone is fine.

        ``context.guard()`` comes before every changing call. Raises
        :class:`~worker.errors.Fatal`, :class:`~worker.errors.Retryable` or
        :class:`~worker.errors.NotReady`; a later audit tries again.
        """


def placeholder_server(backend: BackendContext, owned: OwnedResource) -> ShareServer:
    """Return the share server that an orphan was made for, as far as it is known: its id.

    For a helper whose own way to delete or deallocate finds everything by that.
    """
    return ShareServer(owned.owner_id, "", backend.name, None, ServerStatus.DELETING)
