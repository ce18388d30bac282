"""Objects and lists as a person reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def _text(value: Any) -> Text:
    # Text, not str: a name in brackets is no markup.
    if value is None:
        return Text("-", style="dim")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, (dict, list)):
        return Text(json.dumps(value) if value else "-")
    return Text(str(value))


def _paths(locations: Sequence[Mapping[str, Any]]) -> Text:
    return Text("\n".join(location["path"] for location in locations) or "-")


def print_object(document: Mapping[str, Any]) -> None:
    """Print one object, a line a field."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in document.items():
        table.add_row(name, _paths(value) if name == "export_locations" else _text(value))
    Console().print(table)


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Print a list, a line a row; where the width is a pipe's, nothing is cut off."""
    console = Console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=not console.is_terminal)
    for row in rows:
        table.add_row(*(_text(row.get(column)) for column in columns))
    if console.is_terminal:
        console.print(table)
    else:
        Console(width=10_000).print(table)
