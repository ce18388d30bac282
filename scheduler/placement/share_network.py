"""Choose the share network of a new share (docs/explanation/placement.md).

The first of these that names one decides: the request, the share type's extra spec, the
configuration, the default in the database. If none does, or if the share type asks for
``single_svm``, the share has no share network. The network must be one that the project may name
itself. A setting that names another one is refused and never skipped, so that a share is not
created on an unintended network.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from worker.errors import Conflict, NotFound, ObjectKind

NETWORK_SPEC: Final = "share_network_id"
"""The extra spec by which a share type names the default network of its shares."""


class Visibility(StrEnum):
    """Visibility of a share network for the project that asks."""

    PUBLIC = "public"
    """Every project may use it."""
    OWN = "own"
    """It belongs to the project and is not public."""
    FOREIGN = "foreign"
    """It belongs to another project and is not public: this project must not learn of it."""
    MISSING = "missing"
    """No share network has this id."""

    @property
    def is_usable(self) -> bool:
        """Whether the project may use it."""
        return self in {Visibility.PUBLIC, Visibility.OWN}


@dataclass(frozen=True, slots=True)
class Named:
    """Share network that a request or a setting names, and its visibility."""

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
    """Return the share network of a new share, or None for none.

    ``asks_single_svm``: the share type has ``driver_mode = single_svm``, which ignores share
    networks. No default is taken then, because the share would only keep it from being deleted.

    Raises :class:`~worker.errors.NotFound` when the request names a network that the project may
    not use, and :class:`~worker.errors.Conflict` when a setting does.
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
        # Even the project's own is refused: the configuration is for all projects alike.
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
