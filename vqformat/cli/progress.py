"""Progress on stderr, shown only on a terminal: one line, which is rewritten, and removed at the end."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from ..text import cut, escape, width_of

Progress = Callable[[str, int, int], None]

_PERIOD_S = 0.1  # the line is rewritten at most so often
_FIRST_S = 1.0  # the time left is shown only after this time: before, it would be a guess
_WIDTH = 80  # columns, if the terminal does not tell its own

# What a pass of an encoding does, by the phase that ``encode.progress.TensorProgress`` has
_PHASES = {"codebooks": "training codebooks", "statistics": "gathering statistics", "drafts": "estimating sizes",
           "encoding": "encoding", "measuring": "measuring the file", "correction": "correcting biases and norms",
           "writing": "writing"}  # fmt: skip


@contextlib.contextmanager
def progress_line(*, quiet: bool) -> Iterator[Progress | None]:
    """Context that gives a function which rewrites the line; None if none is shown.

    The function gets a label, the amount done, and the total amount. If the label is a ``TensorProgress``, the line
    shows its pass, and its share of the work of all passes.
    """
    if quiet or sys.stderr is None or not sys.stderr.isatty():  # None if it is closed
        yield None
        return
    line = _Line(sys.stderr)
    try:
        yield line.update
    finally:
        line.remove()


class _Line:
    """The line on a terminal."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self._start = time.monotonic()
        self._next = self._start
        self._width = 0  # columns of the line that is shown

    def update(self, label: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _PERIOD_S
        share: float | None = getattr(label, "share", done / total if total else None)
        what = escape(label)
        phase = getattr(label, "phase", None)
        if phase is not None:
            what = f"pass {getattr(label, 'number', 1)}, {_PHASES.get(phase, phase)}: {what}"
        head = "" if share is None else f"{int(100 * share):3} %  {_left(now - self._start, share)}"
        self._show(cut(head + what, self._n_columns() - 1))

    def remove(self) -> None:
        """Remove the line from the terminal."""
        if self._width:
            self._show("")
            self._show("")  # the cursor is now at the beginning

    def _show(self, text: str) -> None:
        width = width_of(text)
        with contextlib.suppress(OSError):  # a terminal that was closed must not end the work
            self._terminal.write(f"\r{text}{' ' * (self._width - width)}")  # spaces: some terminals know no sequences
            self._terminal.flush()
        self._width = width

    def _n_columns(self) -> int:
        try:
            return os.get_terminal_size(self._terminal.fileno()).columns or _WIDTH
        except (OSError, ValueError):
            return _WIDTH


def _left(elapsed_s: float, share: float) -> str:
    """The time that is left, if the rest of the work is done as fast as the work before."""
    if elapsed_s < _FIRST_S or not share:
        return ""
    seconds = round(elapsed_s * (1 - share) / share)
    minutes, hours = seconds // 60, seconds // 3600
    text = f"{hours}:{minutes % 60:02}:{seconds % 60:02}" if hours else f"{minutes}:{seconds % 60:02}"
    return f"{text} left  "
