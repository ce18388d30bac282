"""Which share network a share is made on (docs/explanation/placement.md).

The first of these that names one decides: the request, the share type's extra spec, the
configuration, the default in the database. Where none does, and where the share type asks for
``single_svm``, a share has no share network. What decides must be a network that the project
could have named itself; a setting that is not is refused and never skipped, so that a share does
not land on another network than the one that was meant.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from worker.errors import Conflict, NotFound, ObjectKind

NETWORK_SPEC: Final = "share_network_id"
"""The extra spec of a share type whose shares have a default of their own."""


class Visibility(StrEnum):
    """What a share network is to the project that asks."""

    PUBLIC = "public"
    """Every project's."""
    OWN = "own"
    """The project's alone."""
    FOREIGN = "foreign"
    """Another project's alone: to this one it does not exist."""
    MISSING = "missing"
    """There is none of this id."""

    @property
    def is_usable(self) -> bool:
        """Whether the project may name it."""
        return self in {Visibility.PUBLIC, Visibility.OWN}


@dataclass(frozen=True, slots=True)
class Named:
    """A share network as something names it."""

    id: str
    visibility: Visibility


def resolve(
    *,
    request: Named | None = None,
    share_type: Named | None = None,
    configuration: Named | None = None,
    default: Named | None = None,
    asks_single_svm: bool = False,
) -> Named | None:
    """Return the share network that a share is made on; None: on none, in ``single_svm``.

    ``asks_single_svm``: the share type has ``driver_mode = single_svm``, which ignores share
    networks; no default is taken then, for a share would only keep it from being deleted.

    Raises :class:`~worker.errors.NotFound` when the request names a network that the project may
    not use, :class:`~worker.errors.Conflict` when the setting that decides does.
    """
    if request is not None:
        if not request.visibility.is_usable:
            raise NotFound(
                f"There is no share network {request.id}.",
                object=ObjectKind.SHARE_NETWORK.ref(request.id),
                field="share_network_id",
            )
        return request
    if asks_single_svm:
        return None
    if share_type is not None:
        if not share_type.visibility.is_usable:
            raise _unusable(
                share_type.id,
                f"The extra spec {NETWORK_SPEC} of the share type",
                field="share_type",
            )
        return share_type
    if configuration is not None:
        # Not even the project's own: a configuration is for all projects alike.
        if configuration.visibility is not Visibility.PUBLIC:
            raise _unusable(
                configuration.id,
                "The configuration's default_share_network_id",
                field="share_network_id",
            )
        return configuration
    return default


def _unusable(network_id: str, setting: str, *, field: str) -> Conflict:
    return Conflict(
        f"{setting} names share network {network_id}, which this project may not use; name a "
        f"share network in the request, or ask an administrator to correct the setting.",
        object=ObjectKind.SHARE_NETWORK.ref(network_id),
        field=field,
    )
