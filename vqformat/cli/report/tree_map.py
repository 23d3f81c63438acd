"""A tree map as HTML: nested rectangles in proportion to numbers, placed by the squarified layout.

Bruls, Huizing and van Wijk, "Squarified Treemaps" (2000).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_ASPECTS = (("wide", 2.1), ("narrow", 0.8))  # width by height, as the style sheet has them: on a screen, on a phone
_LEAST_SHARE = 0.0015  # smaller cells of a group are put together

_SEPARATORS = (".", "/")  # of the parts of a name
_SEPARATOR = re.compile(r"([./_])")


@dataclass(frozen=True)
class Cell:
    """A rectangle.

    Attributes:
        label: Its text, if there is room.
        size: Its area, in any unit.
        detail: A second line, and what is told of it in words.
        kind: Class of the style sheet that gives its colour.
    """

    label: str
    size: float
    detail: str
    kind: str


@dataclass(frozen=True)
class Rectangle:
    left: float
    top: float
    width: float
    height: float


def tree_map(groups: Sequence[tuple[str, Sequence[Cell]]], label: str) -> str:
    """The map as HTML, in two shapes, of which the page shows one.

    Args:
        groups: Names and cells of the outer rectangles.
        label: What the map shows, for those who do not see it.
    """
    total = sum(cell.size for _, cells in groups for cell in cells)
    if not total:
        return ""
    sized = [(name, _joined(cells, _LEAST_SHARE * total)) for name, cells in groups]
    kept = [group for group in sized if group[1]]  # a layer may have nothing but empty tensors
    kept.sort(key=lambda group: -sum(cell.size for cell in group[1]))
    return "".join(f'<div class="map {kind}" role="img" aria-label="{escape(label)}">'
                   f"{_groups(kept, Rectangle(0, 0, aspect, 1))}</div>" for kind, aspect in _ASPECTS)  # fmt: skip


def _groups(kept: Sequence[tuple[str, Sequence[Cell]]], whole: Rectangle) -> str:
    sizes = [sum(cell.size for cell in cells) for _, cells in kept]
    html = []
    for (name, cells), outer in zip(kept, squarify(sizes, whole), strict=True):
        places = squarify([cell.size for cell in cells], Rectangle(0, 0, outer.width, outer.height))
        has_title = len(cells) > 1 and name != ""
        prefix = name if has_title else ""
        parts = "".join(_cell(cell, place, outer, prefix) for cell, place in zip(cells, places, strict=True))
        title = f"<i>{escape(name)}</i>" if has_title else ""
        html.append(f'<div class="group{" titled" if has_title else ""}" style="{_style(outer, whole)}">{title}'
                    f"<div>{parts}</div></div>")  # fmt: skip
    return "".join(html)


def _joined(cells: Sequence[Cell], least: float) -> list[Cell]:
    """The cells by size, those below ``least`` as one."""
    large = sorted((cell for cell in cells if cell.size >= least), key=lambda cell: -cell.size)
    small = [cell for cell in cells if 0 < cell.size < least]
    if small:
        what = small[0].label if len(small) == 1 else f"{len(small):,} small tensors"
        large.append(Cell(what, sum(cell.size for cell in small), "", "other"))
    return large


def squarify(sizes: Sequence[float], whole: Rectangle) -> list[Rectangle]:
    """Rectangles that fill one, in proportion to sizes that descend, as square as the layout can make them."""
    if not sizes:
        return []
    scale = whole.width * whole.height / sum(sizes)
    areas = [size * scale for size in sizes]
    places: list[Rectangle] = []
    left, top, width, height = whole.left, whole.top, whole.width, whole.height
    while len(places) < len(areas):
        rest = areas[len(places) :]
        side = min(width, height)
        n = 1
        while n < len(rest) and _worst(rest[: n + 1], side) <= _worst(rest[:n], side):
            n += 1
        thickness = sum(rest[:n]) / side if side else 0.0
        along = 0.0
        for area in rest[:n]:
            length = area / thickness if thickness else 0.0
            if width >= height:  # a column at the left
                places.append(Rectangle(left, top + along, thickness, length))
            else:
                places.append(Rectangle(left + along, top, length, thickness))
            along += length
        if width >= height:
            left, width = left + thickness, max(0.0, width - thickness)
        else:
            top, height = top + thickness, max(0.0, height - thickness)
    return places


def _worst(areas: Sequence[float], side: float) -> float:
    """The largest aspect ratio of rectangles in a row along a side."""
    total = sum(areas)
    return max(side**2 * max(areas) / total**2, total**2 / (side**2 * min(areas))) if side else 0.0


def _cell(cell: Cell, place: Rectangle, outer: Rectangle, prefix: str) -> str:
    told = escape(f"{cell.label}: {cell.detail}" if cell.detail else cell.label)
    start, rest = "", cell.label
    if prefix and rest.startswith(prefix) and rest[len(prefix) : len(prefix) + 1] in _SEPARATORS:
        start, rest = rest[: len(prefix) + 1], rest[len(prefix) + 1 :]
    # The style sheet shows the start only where the title of the group has no room
    shown = f"<em>{breakable(start)}</em>{breakable(rest)}" if start else breakable(rest)
    return (f'<div class="cell {cell.kind}" title="{told}" style="{_style(place, outer)}">'
            f"<span><b>{shown}</b><br>{escape(cell.detail)}</span></div>")  # fmt: skip


def breakable(name: str) -> str:
    """A name in HTML that may be broken between its parts."""
    return _SEPARATOR.sub(r"\1<wbr>", escape(name))


def _style(place: Rectangle, outer: Rectangle) -> str:
    return (f"left:{100 * place.left / outer.width:.3f}%;top:{100 * place.top / outer.height:.3f}%;"
            f"width:{100 * place.width / outer.width:.3f}%;height:{100 * place.height / outer.height:.3f}%")
