"""What drivers and helpers have in common: options, the backend's context, shared capabilities."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from worker.model import DriverMode, OwnedResource, RequestContext, ServerStatus, ShareServer


class Options(BaseModel):
    """Base class of a plug-in's options. An unknown option stops the worker at start.

    Every field carries a ``description``: the operator's guide is generated from them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


@dataclass(frozen=True, slots=True)
class BackendContext:
    """What a plug-in is told about its backend: name, mode and state directory.

    ``state_dir`` is a directory on this host, used by this backend only and the same after a
    restart. A plug-in keeps files there that must outlive the worker (records of daemons,
    images), and creates the directory when it first writes to it.
    """

    name: str
    mode: DriverMode
    state_dir: Path
    share_network_addresses: bool = False
    """Whether a flat backend uses the addresses named on a share network."""
    servers_elsewhere: bool = False
    """Whether share servers are separate machines, with storage and NFS server on them."""


class Checked(ABC):
    """Capability of a plug-in that checks its options against the external system at start."""

    @abstractmethod
    def check(self) -> None:
        """Check that every object named in the options exists, without changing anything.

        Called when a worker starts. Raises :class:`~worker.errors.Fatal` when an object is missing
        or ambiguous: the worker then does not start. Raises :class:`~worker.errors.Retryable` when
        the external system cannot be asked: the worker starts and logs a warning.
        """


class Audit(ABC):
    """Capability of a plug-in that lists and removes the resources it created.

    Both methods work without the database: resources are recognized by names and tags that contain
    a row's id. A resource without such a mark belongs to somebody else and is neither listed nor
    touched. A driver lists at least one resource for every existing share and snapshot, a helper
    at least one for every share server.
    """

    @abstractmethod
    def owned(self, context: RequestContext) -> Iterable[OwnedResource]:
        """List every marked resource, whether its row still exists or not. Changes nothing.

        Raises :class:`~worker.errors.Fatal` or :class:`~worker.errors.Retryable` when the list
        would be incomplete: the audit would report the missing resources as lost.
        """

    @abstractmethod
    def remove_orphan(self, context: RequestContext, owned: OwnedResource) -> None:
        """Remove a resource listed by :meth:`owned` after its row was deleted.

        Succeeds when the resource is gone already. ``context.guard()`` is called before every
        changing call. Raises :class:`~worker.errors.Fatal`, :class:`~worker.errors.Retryable` or
        :class:`~worker.errors.NotReady`; a later audit tries again.
        """


def placeholder_server(backend: BackendContext, owned: OwnedResource) -> ShareServer:
    """Return a share server of which only the id is known: the owner of an orphan.

    A helper passes it to its own delete or deallocate method, which needs only the id.
    """
    return ShareServer(owned.owner_id, "", backend.name, None, ServerStatus.DELETING)
