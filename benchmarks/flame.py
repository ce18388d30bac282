"""A flame graph of folded stacks as one small SVG: a bar a function, as wide as its share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Final, Self

from tests.support.services import ROOT

WIDTH: Final = 1200.0
ROW: Final = 16
LEAST: Final = 0.004
"""Of the whole; what is narrower is left out."""
LETTER: Final = 6.3
_COLOURS: Final = (
    ("/psycopg", "#8fbcd4"),
    ("/sqlalchemy/", "#a9c9a4"),
    ("/redis/", "#e0a58f"),
    ("/kombu/", "#e8c07d"),
    ("/celery/", "#d9d08a"),
    ("/billiard/", "#d9d08a"),
    ("/vine/", "#d9d08a"),
    ("(worker/", "#b7a6d9"),
    ("(scheduler/", "#b7a6d9"),
)
_REST: Final = "#cccccc"


@dataclass(slots=True)
class Frame:
    """A function under its callers."""

    name: str
    samples: int = 0
    callees: dict[str, Self] = field(default_factory=dict)


def tree_of(lines: Iterable[str], beginnings: Mapping[str, str]) -> Frame:
    """Add up folded stacks, each from the last frame on that is one of ``beginnings``.

    These are functions, and what is written in their place; stacks without one are left out.
    """
    root = Frame("all")
    for line in lines:
        stack, _, samples = line.rpartition(" ")
        names = [_short(name) for name in stack.split(";")]
        starts = [
            (number, place)
            for number, name in enumerate(names)
            for function, place in beginnings.items()
            if name.startswith(function)
        ]
        if not starts:
            continue
        first, place = starts[-1]
        node = root
        node.samples += int(samples)
        for name in (place, *names[first + 1 :]):
            node = node.callees.setdefault(name, Frame(name))
            node.samples += int(samples)
    return root


def _short(name: str) -> str:
    function, _, place = name.partition(" (")
    place = re.sub(r":\d+\)$", "", place)
    place = place.removeprefix(f"{ROOT}/")
    return f"{function} ({re.sub(r'.*/(?:site-packages|lib/python[0-9.]+)/', '/', place)})"


def svg(root: Frame, title: str) -> str:
    """Draw it; the callers on top."""
    bars: list[str] = []
    depth = _draw(root, 0.0, 0, root.samples, bars)
    height = (depth + 2) * ROW + 8
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:.0f} {height}" '
        f'font-family="monospace" font-size="10"><title>{escape(title)}</title>'
        f'<text x="4" y="12">{escape(title)}</text>\n' + "\n".join(bars) + "\n</svg>\n"
    )


def _draw(frame: Frame, left: float, row: int, total: int, bars: list[str]) -> int:
    share = frame.samples / total
    if share < LEAST:
        return row
    width = share * WIDTH
    top = (row + 1) * ROW + 4
    colour = next((found for part, found in _COLOURS if part in frame.name), _REST)
    label = frame.name.partition(" (")[0][: max(0, int((width - 4) / LETTER))]
    bars.append(
        f'<g><title>{escape(frame.name)} {share:.1%}</title><rect x="{left:.1f}" y="{top}" '
        f'width="{width:.1f}" height="{ROW - 1}" fill="{colour}"/>'
        + (f'<text x="{left + 2:.1f}" y="{top + 11}">{escape(label)}</text>' if label else "")
        + "</g>"
    )
    deepest = row
    for callee in sorted(frame.callees.values(), key=lambda one: -one.samples):
        deepest = max(deepest, _draw(callee, left, row + 1, total, bars))
        left += callee.samples / total * WIDTH
    return deepest
