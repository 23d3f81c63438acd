"""Text for tables and messages: escaping of text from files, tables, numbers."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence

_MAX_PADDING = 60  # largest width of a column; a longer cell overflows
_LEAST_NAME, _LEAST = 40, 12  # the first column and others are not cut to less


def escape(text: str) -> str:
    """Escape all characters that a terminal could interpret, and double backslashes.

    Control and format characters (including bidirectional ones), line separators, surrogates and unassigned characters
    become ``\\x1b``, ``\\u202e`` and so on, as in a Python string.
    """
    return "".join(_escape_one(char) for char in text.replace("\\", "\\\\"))


def one_line(text: str) -> str:
    """An error message as one line that is safe to print. Backslashes stay, because names in it are escaped already."""
    return "".join(_escape_one(char) for char in " ".join(text.split()))


def _escape_one(char: str) -> str:
    return char if char.isprintable() else repr(char)[1:-1]


def shorten(text: str, width: int = 100) -> str:
    """The text, cut to at most ``width`` characters."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def cut(text: str, width: int) -> str:
    """The text, cut to at most ``width`` columns of a terminal."""
    if width_of(text) <= width:
        return text
    end = used = 0
    while (used := used + width_of(text[end])) < width:
        end += 1
    return f"{text[:end]}…"


def cut_middle(text: str, width: int) -> str:
    """The text, its middle left out if it has more than ``width`` columns of a terminal."""
    if width_of(text) <= width:
        return text
    n_last = (width - 1) * 2 // 3  # the end of a name tells more than its beginning
    tail = text[len(text) - n_last :]
    while width_of(tail) > n_last:
        tail = tail[1:]
    return cut(text, width - width_of(tail)) + tail


def table(rows: Iterable[Sequence[str]], align: str, width: int | None = None) -> list[str]:
    """The lines of a table.

    Args:
        rows: Cells, already escaped. The first row is the head.
        align: ``"<"`` or ``">"`` for each column.
        width: Columns of the terminal; None for any. Cells that are aligned left are cut for it, but not to so little
            that names cannot be told apart.
    """
    rows = list(rows)
    widths = [min(_MAX_PADDING, max(map(width_of, column))) for column in zip(*rows, strict=True)]
    if width is not None:
        widths = [max(map(width_of, column)) for column in zip(*rows, strict=True)]
        least = [_LEAST if i else _LEAST_NAME for i in range(len(widths))]
        while sum(widths) + 2 * (len(widths) - 1) > width:
            texts = [i for i, side in enumerate(align) if side == "<" and widths[i] > least[i]]
            if not texts:
                break
            widths[max(texts, key=widths.__getitem__)] -= 1
        rows = [[cut_middle(cell, most) for cell, most in zip(row, widths, strict=True)] for row in rows]
    return ["  ".join(_pad(*cell) for cell in zip(row, widths, align, strict=True)).rstrip() for row in rows]


def _pad(cell: str, width: int, align: str) -> str:
    padding = " " * (width - width_of(cell))
    return padding + cell if align == ">" else cell + padding


def width_of(text: str) -> int:
    """Number of columns that the text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF") for char in text)


def shape_text(shape: Sequence[int]) -> str:
    """A shape as text, such as ``300x784``; ``scalar`` without axes."""
    return "x".join(map(str, shape)) or "scalar"


def count(n: int) -> str:
    """An integer with separators between thousands."""
    return f"{n:,}"


def counted(n: int, what: str) -> str:
    """A number with a noun in singular or plural: ``1 tensor``, ``2 tensors``."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def decibel(value: float) -> str:
    """A signal-to-noise ratio in dB as text: ``exact`` for inf, ``-`` for nan."""
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "exact" if value > 0 else "-inf"
    return f"{value:.2f}"


def number(value: float, format: str) -> str:
    """A formatted number; ``-`` for nan."""
    return "-" if math.isnan(value) else f"{value:{format}}"
