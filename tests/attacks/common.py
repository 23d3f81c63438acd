"""What the attacks share: how they are run, and how what becomes of them is told."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import vqformat
from vqformat import converters
from vqformat.cli import main

Read = Callable[[], object]


class Attack:
    """Pickles to a call that leaves a folder behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def outcome(read: Read) -> str:
    """What becomes of a file: ``"opens it"`` and what was found, or ``"refuses it"`` and why."""
    try:
        found = read()
    except BaseException as err:  # a panic of Rust is none of the usual ones
        if isinstance(err, KeyboardInterrupt):
            raise
        return f"refuses it: {type(err).__name__}: {' '.join(str(err).split())[:90]}"
    return f"opens it: {found!r:.90}"


def convert(path: Path) -> str:
    """Convert a checkpoint of another format."""
    return str(converters.convert(path, path.with_name("out.vqm"), lossless=True, overwrite=True))


def load(path: Path) -> list[str]:
    """Load a ``.vqm`` in both ways: front to back, and by its index."""
    with vqformat.safe_open(path) as f:
        for name in f:
            f[name]
    return list(vqformat.load_file(path))


def vqm(*args: object) -> tuple[int, str]:
    """Run the command: its exit code, and all that it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = main([str(arg) for arg in args])
    return code, out.getvalue()
