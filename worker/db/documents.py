"""Conversions between frozen values and JSON columns, and of times for producers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from worker.model import ExportLocation, NetworkInfo, Route, ShareServerDetails


def network_info(document: Mapping[str, Any] | None) -> NetworkInfo | None:
    """Rebuild a network helper's answer from the document that :func:`plain` returned."""
    if document is None:
        return None
    values = dict(document)
    for name in ("addresses", "ports", "mac_addresses"):
        values[name] = tuple(values[name])
    values["routes"] = tuple(Route(**route) for route in values["routes"])
    return NetworkInfo(**values)


def server_details(document: Mapping[str, Any] | None) -> ShareServerDetails | None:
    """Rebuild a compute helper's answer from the document that :func:`plain` returned."""
    if document is None:
        return None
    return ShareServerDetails(**{**document, "addresses": tuple(document["addresses"])})


def export_locations(document: list[dict[str, Any]]) -> tuple[ExportLocation, ...]:
    """Rebuild a share's export locations from their JSON column."""
    return tuple(ExportLocation(**location) for location in document)


def plain(value: NetworkInfo | ShareServerDetails | ExportLocation) -> dict[str, Any]:
    """Return a frozen value as a document for a JSON column."""
    values = {name: getattr(value, name) for name in value.__dataclass_fields__}
    if "attributes" in values:
        values["attributes"] = dict(values["attributes"])
    if "routes" in values:
        values["routes"] = [asdict(route) for route in values["routes"]]
    return {name: list(item) if isinstance(item, tuple) else item for name, item in values.items()}


def moment(seconds: float | None) -> str | None:
    """Format seconds since the epoch for producers: ISO 8601, in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()
