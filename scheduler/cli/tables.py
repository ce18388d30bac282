"""Objects and lists as a person reads them.

Nothing is ever folded: an id that is split over lines cannot be copied. A list that is wider than
the terminal is shown without its last columns; a pipe gets everything, without trailing blanks.
"""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

_GAP: Final = "  "
_WIDEST_CELL: Final = 40
"""Longer values are cut off in lists on a terminal; ids are shorter."""
_SECOND: Final = len("2026-11-28T17:34:40")


def print_object(document: Mapping[str, Any]) -> None:
    """Print one object, a line a field."""
    width = max((len(name) for name in document), default=0)
    indented = "\n" + " " * width + _GAP
    for name, value in document.items():
        text = _paths(value) if name == "export_locations" else _text(value)
        lines = [_printable(line) for line in text.splitlines()] or [""]
        label = click.style(name, bold=True) + " " * (width - len(name))
        click.echo(f"{label}{_GAP}{indented.join(lines)}")


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Print a list, a line a row. Columns are given in the order of their importance."""
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    cells = [[_cell(column, row.get(column), room) for column in columns] for row in rows]
    widths = [
        max(_width(line[number]) for line in [list(columns), *cells])
        for number in range(len(columns))
    ]
    kept = len(columns)
    while room is not None and kept > 1 and sum(widths[:kept]) + len(_GAP) * (kept - 1) > room:
        kept -= 1
    click.echo(click.style(_line(columns[:kept], widths), bold=True))
    for line in cells:
        click.echo(_line(line[:kept], widths))
    if kept < len(columns):
        left_out = ", ".join(columns[kept:])
        click.echo(f"Not shown, for want of width: {left_out}.", err=True)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (
        cell + " " * (width - _width(cell)) for cell, width in zip(cells, widths, strict=False)
    )
    return _GAP.join(padded).rstrip()


def _cell(column: str, value: Any, room: int | None) -> str:
    text = _printable(_text(value))
    if column.endswith(("_at", "_seen")):
        return text[:_SECOND]
    if room is not None and len(text) > _WIDEST_CELL:
        return text[: _WIDEST_CELL - 1] + "…"
    return text


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (dict, list)):
        return json.dumps(value) if value else "-"
    return str(value)


def _paths(locations: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(location["path"] for location in locations) or "-"


def _printable(text: str) -> str:
    """Replace control characters, which could move the terminal's cursor."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF")
        for letter in text
    )
