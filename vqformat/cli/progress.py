"""A progress bar on stderr, shown only on a terminal and if tqdm is installed (the extra ``progress``)."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from .text import escape, shorten

Progress = Callable[[str, int, int], None]


@contextlib.contextmanager
def progress_bar(*, quiet: bool, unit: str) -> Iterator[Progress | None]:
    """Context that gives a function which updates the bar; None if no bar is shown.

    The function gets a label, the amount done, and the total amount. If the amount done decreases, a new pass begins.
    """
    if quiet or not sys.stderr.isatty():
        yield None
        return
    try:
        tqdm: Any = importlib.import_module("tqdm").tqdm
    except ImportError:
        yield None
        return
    bar: Any = None

    def update(label: str, done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(file=sys.stderr, unit=unit, unit_scale=True, leave=False, dynamic_ncols=True, total=total)
        if done < bar.n or total != bar.total:
            bar.reset(total)
        bar.set_description_str(shorten(escape(label), 40), refresh=False)
        bar.update(done - bar.n)

    try:
        yield update
    finally:
        if bar is not None:
            bar.close()
