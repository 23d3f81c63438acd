"""Text output: escaping of text from files, error messages, tables, numbers, JSON."""

from __future__ import annotations

import base64
import json
import math
import os
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import VqmError

_MAX_PADDING = 60  # largest width of a column; a longer cell overflows


def escape(text: str) -> str:
    """Escape all characters that a terminal could interpret, and double backslashes.

    Control and format characters (including bidirectional ones), line separators, surrogates and unassigned characters
    become ``\\x1b``, ``\\u202e`` and so on, as in a Python string.
    """
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(_escape_one(char) for char in text.replace("\\", "\\\\"))


def one_line(text: str) -> str:
    """An error message as one line that is safe to print. Backslashes stay, because names in it are escaped already."""
    return "".join(_escape_one(char) for char in " ".join(text.split()))


def describe_error(err: Exception) -> str:
    """The message of an error as one line for users."""
    match err:
        case VqmError():
            text = str(err)
        case OSError(strerror=str(reason)):
            where = "" if err.filename is None else f"{os.fspath(err.filename)!r}: "
            text = f"{where}{reason[:1].lower()}{reason[1:]}"
        case OSError() | ImportError():
            text = str(err)
        case MemoryError():
            text = f"not enough memory{f': {err}' if str(err) else ''}"
        case _:
            text = f"unexpected {type(err).__name__}: {err} (VQM_TRACEBACK=1 shows where)"
    return one_line(text)


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


def table(rows: Iterable[Sequence[str]], align: str) -> list[str]:
    """The lines of a table.

    Args:
        rows: Cells, already escaped. The first row is the head.
        align: ``"<"`` or ``">"`` for each column.
    """
    columns = []
    for column, side in zip(zip(*rows, strict=True), align, strict=True):
        width = min(_MAX_PADDING, max(map(width_of, column)))
        columns.append([cell + " " * (width - width_of(cell)) if side == "<" else " " * (width - width_of(cell)) + cell
                        for cell in column])  # fmt: skip
    return ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]


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


def to_json(value: Any) -> str:
    """A JSON document in ASCII. NaN and infinity become null; bytes become ``{"base64": …}``."""
    return json.dumps(_plain(value), indent=2, allow_nan=False).replace("\x7f", "\\u007f")


def _plain(value: Any) -> Any:
    if value is None or type(value) in (str, int):
        return value
    match value:
        case float():
            return value if math.isfinite(value) else None
        case bytes():
            return {"base64": base64.b64encode(value).decode()}
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
    return value
