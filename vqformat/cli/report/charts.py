"""The charts of a report, drawn by matplotlib as SVG that takes its colours and its font from the page."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from html import escape as html_escape
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import missing_package
from ...text import cut_middle
from .measure import Histogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE, NARROW = 9.2, 3.7  # inches: on a screen, and on a phone
_MOST_LABELS = 40  # rows with names; more are numbered
# Colours that the style sheet of the page gives: a colour in the picture -> its variable
_INK, _MUTED, _GRID = "#010101", "#010102", "#010103"
_SERIES = ("#010104", "#010105", "#010106", "#010107")
_VARIABLES = {_INK: "ink", _MUTED: "muted", _GRID: "grid", **{colour: f"s{i}" for i, colour in enumerate(_SERIES)}}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "text.parse_math": False, "font.size": 9, "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "xtick.color": _GRID, "ytick.color": _GRID, "xtick.labelcolor": _MUTED, "ytick.labelcolor": _MUTED,
    "text.color": _INK, "grid.color": _GRID, "grid.linewidth": 0.6, "axes.spines.top": False,
    "axes.spines.right": False, "axes.axisbelow": True, "legend.frameon": False, "xtick.major.size": 0,
    "ytick.major.size": 0, "axes.unicode_minus": True,
}  # fmt: skip


class Charts:
    """Draws charts. Each gets ids of its own, so that many can be in one page.

    Raises:
        ImportError: matplotlib is missing.
    """

    def __init__(self) -> None:
        try:
            import matplotlib
            from matplotlib.figure import Figure
        except ImportError as err:
            raise missing_package("vqm report needs", "matplotlib", err) from err
        self._matplotlib, self._figure = matplotlib, Figure
        self._n = 0

    def _draw(self, size: tuple[float, float], label: str, draw: Callable[[Figure], None]) -> str:
        self._n += 1
        style = {**_STYLE, "svg.hashsalt": str(self._n)}
        with self._matplotlib.rc_context(style), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has other fonts
            figure = self._figure(figsize=size, layout="constrained")
            draw(figure)
            stream = io.StringIO()
            figure.savefig(stream, format="svg", transparent=True, metadata=dict.fromkeys(
                ("Date", "Creator", "Format", "Type")))  # fmt: skip
        return _for_page(stream.getvalue(), label)

    def by_size(self, height: Callable[[float], float], label: str, draw: Callable[[Figure, float], None]) -> str:
        """A chart in two widths, of which the page shows one."""
        parts = []
        for kind, width in (("wide", WIDE), ("narrow", NARROW)):
            picture = self._draw((width, height(width)), label, lambda figure, width=width: draw(figure, width))  # type: ignore[misc]
            parts.append(f'<div class="{kind}">{picture}</div>')
        return "".join(parts)

    def dots(
        self, names: Sequence[str], series: Sequence[tuple[str, Sequence[float]]], unit: str, label: str,
        *, from_zero: bool = False, low: tuple[float, str] | None = None,
    ) -> str:  # fmt: skip
        """A row with a dot for each name, or a numbered column if they are many; empty without values.

        Args:
            series: Name and values; nan for none.
            low: A value that should be exceeded, and its label.
        """
        is_numbered = len(names) > _MOST_LABELS
        least = min((value for _, values in series for value in values if math.isfinite(value)), default=math.nan)
        if math.isnan(least):
            return ""

        def draw(figure: Figure, width: float) -> None:
            axes = figure.add_subplot()
            rows = np.arange(len(names))
            for i, (title, values) in enumerate(series):
                at = (rows, values) if is_numbered else (values, rows)
                axes.plot(*at, "o", color=_SERIES[i], markersize=5 if is_numbered else 7, label=title, alpha=0.9)
                if not is_numbered and len(series) == 1:
                    axes.hlines(rows, 0, values, color=_SERIES[i], linewidth=2.5, alpha=0.35)
            line, set_label = (axes.axhline, axes.set_ylabel) if is_numbered else (axes.axvline, axes.set_xlabel)
            set_label(unit)
            if low is not None:
                line(low[0], color=_MUTED, linewidth=1, linestyle=(0, (4, 3)), label=low[1])
            if is_numbered:
                axes.set_xlabel("number, in the order of the file")
                lowest = next(i for _, values in series for i, value in enumerate(values) if value == least)
                axes.annotate(f"lowest: {cut_middle(names[lowest], 40)}", (lowest, least), fontsize=8,
                              xytext=(0, -7), textcoords="offset points", va="top",
                              ha="left" if lowest < len(names) / 2 else "right")  # fmt: skip
                axes.margins(y=0.15)
                axes.grid(axis="y")
                if from_zero:
                    axes.set_ylim(bottom=0)
            else:
                most = 48 if width == WIDE else 20
                axes.set_yticks(rows, [cut_middle(name, most) for name in names])
                axes.set_ylim(len(names) - 0.4, -0.6)
                axes.set_xlim(left=min(0.0, 1.05 * least))
                axes.grid(axis="x")
            if len(series) > 1 or low is not None:
                figure.legend(loc="outside upper left", ncols=3 if width == WIDE else 1)

        rows_height = 0.24 * len(names) + 0.9 + 0.16 * len(series)
        return self.by_size(lambda width: 3.4 if is_numbered else rows_height, label, draw)

    def histogram(self, found: Histogram, label: str) -> str:
        """Weights against reconstruction points, and the errors below."""

        def draw(figure: Figure) -> None:
            has_errors = found.errors is not None
            parts = figure.subplots(2, 1, height_ratios=(2.2, 1)) if has_errors else [figure.add_subplot()]
            _draw_values(parts[0], found)
            if found.errors is not None and found.error_edges is not None:
                parts[1].stairs(found.errors, found.error_edges, fill=True, color=_SERIES[2], alpha=0.55)
                _bare(parts[1])
                parts[1].set_xlabel("error", labelpad=1)

        return self._draw((3.7, 2.9 if found.errors is not None else 2.0), label, draw)

    def entropies(self, stored: Sequence[float], entropy: Sequence[float], nbytes: Sequence[int], label: str) -> str:
        """Stored bits against the entropy of the codes; the area of a dot is in proportion to bytes."""
        areas = np.clip(900 * np.asarray(nbytes) / max(nbytes), 12, None)
        low, high = min(*stored, *entropy), max(*stored, *entropy)
        limits = max(0.0, low - 0.15 * (high - low) - 0.1 * high), 1.1 * high

        def draw(figure: Figure, width: float) -> None:
            axes = figure.add_subplot(xlabel="entropy of the codes, bits/weight", ylabel="stored, bits/weight",
                                      xlim=limits, ylim=limits)  # fmt: skip
            axes.plot(limits, limits, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)),
                      label="as many bits as the entropy")  # fmt: skip
            axes.scatter(entropy, stored, s=areas if width == WIDE else areas / 2, color=_SERIES[0], alpha=0.5,
                         linewidths=0.8, edgecolors=_INK, zorder=2)  # fmt: skip
            axes.grid()
            axes.legend(loc="upper left")

        return self.by_size(lambda width: 3.8 if width == WIDE else 3.3, label, draw)


def _draw_values(axes: Axes, found: Histogram) -> None:
    low, high = found.edges[0], found.edges[-1]
    top = float(found.decoded.max())
    if found.weights is not None:
        axes.stairs(found.weights, found.edges, fill=True, color=_SERIES[0], alpha=0.4)
        top = float(found.weights.max())
    if found.points is None:
        axes.stairs(found.decoded, found.edges, color=_SERIES[1], linewidth=1.2, fill=found.weights is None,
                    alpha=0.9 if found.weights is not None else 0.5)  # fmt: skip
    else:
        points, shares = found.points
        inside = (points >= low) & (points <= high)
        points, shares = points[inside], shares[inside]
        # One line with gaps, since a picture of hundreds of lines would be large
        heights = 0.95 * top * shares / shares.max() if found.weights is None else np.full(points.size, 0.09 * top)
        base = 0.0 if found.weights is None else -0.11 * top
        xs = np.repeat(points, 3)
        ys = np.stack([np.full(points.size, base), base + heights, np.full(points.size, math.nan)], axis=1).reshape(-1)
        axes.plot(xs, ys, color=_SERIES[1], linewidth=0.9, solid_capstyle="butt")
    axes.set_xlim(low, high)
    _bare(axes)


def _bare(axes: Axes) -> None:
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.locator_params(axis="x", nbins=5)
    axes.tick_params(pad=2)


def _for_page(svg: str, label: str) -> str:
    """The picture as an element of a page: without what pages have themselves, and with short numbers."""
    svg = svg[svg.index("<svg") :]
    for pattern in (r"<metadata>.*?</metadata>", r"<!--.*?-->", r"<style.*?</style>"):
        svg = re.sub(pattern, "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # ids that each picture has, and to which nothing refers
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{html_escape(label)}" ', 1)
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    svg = re.sub(r'(?<= style=")[^"]*', lambda found: _short_style(found.group()), svg)
    svg = re.sub(r'(?<= d=")[^"]*', lambda found: _short_path(found.group()), svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    return re.sub(r"<g/>\n|<g>\n</g>\n|<defs>\n</defs>\n", "", svg).strip()


def _short_style(style: str) -> str:
    style = re.sub(r"font-family: [^;]*;? ?", "", style)
    for colour, variable in _VARIABLES.items():
        style = style.replace(colour, f"var(--{variable})")
    return style


def _short_path(path: str) -> str:
    path = re.sub(r"\d+\.\d+", lambda found: f"{float(found.group()):.1f}".removesuffix(".0"), path)
    return re.sub(r"\s*([A-Za-z])\s*", r"\1", path)

