"""Output of the command: error messages, JSON, and what depends on the terminal: its width and colours."""

from __future__ import annotations

import base64
import json
import math
import os
import shutil
import sys
from typing import Any, TextIO

from ..errors import VqmError
from ..text import one_line

_COLOURS = {"error": "\x1b[1;31m", "note": "\x1b[1;33m"}  # bold red, bold yellow
_PLAIN = "\x1b[0m"


class FileError(Exception):
    """Failed work. The message is one line that names the file."""


class UserCodeError(Exception):
    """Code of the user raised an error. The message is one line that says which.

    Attributes:
        traceback: The lines of its traceback, safe to print.
    """

    def __init__(self, text: str, traceback: list[str]) -> None:
        super().__init__(text)
        self.traceback = traceback


def message(kind: str, text: str) -> None:
    """Print a line on stderr: ``vqm: error: …`` or ``vqm: note: …``. The text is safe to print."""
    if sys.stdout is not None:
        sys.stdout.flush()  # so that the lines of both are in order
    if sys.stderr is not None:  # None if it is closed
        print(f"vqm: {_coloured(f'{kind}:', _COLOURS[kind], sys.stderr)} {text}", file=sys.stderr)


def _coloured(text: str, colour: str, stream: TextIO) -> str:
    has_colours = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"{colour}{text}{_PLAIN}" if has_colours else text


def table_width(stream: TextIO | None, *, verbose: bool) -> int | None:
    """Most columns of a table: those of the terminal; None if the stream is none, or for ``-v``, which cuts nothing."""
    return None if verbose or stream is None or not stream.isatty() else shutil.get_terminal_size().columns


def describe_error(err: Exception) -> str:
    """The message of an error as one line for users."""
    match err:
        case FileError() | UserCodeError():
            return str(err)
        case VqmError():
            text = str(err)
        case OSError(strerror=str(reason)):
            where = "" if err.filename is None else f"{os.fspath(err.filename)!r}: "
            text = f"{where}{reason[:1].lower()}{reason[1:]}"
        case ModuleNotFoundError(name=str(name)) if "pip install" not in str(err):
            text = f"{err}; run: pip install {name.partition('.')[0]}"
        case OSError() | ImportError():
            text = str(err)
        case MemoryError():
            text = f"not enough memory{f': {err}' if str(err) else ''}"
        case _:
            text = f"unexpected {type(err).__name__}: {err} (VQM_TRACEBACK=1 shows where)"
    return one_line(text)


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
