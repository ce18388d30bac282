"""Frozen values to JSON columns and back, and times as producers see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from worker.model import ExportLocation, NetworkInfo, Route, ShareServerDetails


def network_info(document: Mapping[str, Any] | None) -> NetworkInfo | None:
    """Rebuild what :func:`plain` made of a network helper's answer."""
    if document is None:
        return None
    values = dict(document)
    for name in ("addresses", "ports", "mac_addresses"):
        values[name] = tuple(values[name])
    values["routes"] = tuple(Route(**route) for route in values["routes"])
    return NetworkInfo(**values)


def server_details(document: Mapping[str, Any] | None) -> ShareServerDetails | None:
    """Rebuild what :func:`plain` made of a compute helper's answer."""
    if document is None:
        return None
    return ShareServerDetails(**{**document, "addresses": tuple(document["addresses"])})


def export_locations(document: list[dict[str, Any]]) -> tuple[ExportLocation, ...]:
    """Rebuild a share's export locations."""
    return tuple(ExportLocation(**location) for location in document)


def plain(value: NetworkInfo | ShareServerDetails | ExportLocation) -> dict[str, Any]:
    """A JSON-safe document of a frozen value."""
    values = {name: getattr(value, name) for name in value.__dataclass_fields__}
    if "attributes" in values:
        values["attributes"] = dict(values["attributes"])
    if "routes" in values:
        values["routes"] = [asdict(route) for route in values["routes"]]
    return {name: list(item) if isinstance(item, tuple) else item for name, item in values.items()}


def moment(seconds: float | None) -> str | None:
    """ISO 8601 in UTC, as producers see times."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()
