"""``vqm verify``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import FormatError, VqmError
from ..read.contents import read_contents
from .files import STDIO, label, opened
from .progress import Progress, progress_line
from .text import describe_error, to_json


def run_verify(args: argparse.Namespace) -> int:
    """Run ``vqm verify``: check whether files are complete and correct."""
    results = []
    for file in args.files:
        result: dict[str, Any] = {"file": file, "ok": False}
        try:
            digest, content = _verify(file, quiet=args.quiet or args.json)
        except (VqmError, OSError) as err:
            text = describe_error(err)
            result["error"] = text
            if isinstance(err, FormatError):
                result |= {"error_class": err.error_class, "clause": err.clause or None, "offset": err.offset}
            if not args.json:
                where = "" if getattr(err, "filename", None) is not None else f"{label(file)}: "
                sys.stdout.flush()  # so that the lines of stdout and stderr are in order
                print(f"vqm: error: {where}{text}", file=sys.stderr)
        else:
            result |= {"ok": True, "digest": digest, "content_digest": content}
            if not (args.json or args.quiet):
                print(f"{label(file)}: ok {digest}, contents {content}")
        results.append(result)
    if args.json:
        print(to_json(results))
    return 0 if all(result["ok"] for result in results) else 1


def _verify(file: str, *, quiet: bool) -> tuple[str, str]:
    """Check a file. Returns its SHA-256 and its content digest, in hexadecimal."""
    total = 0 if file == STDIO else Path(file).stat().st_size
    with opened(file) as stream, progress_line(quiet=quiet or not total) as progress:
        return read_contents(_Watched(stream, file, total, progress) if progress else stream)  # type: ignore[arg-type]


class _Watched:
    """A stream that reports to the line of progress how much has been read."""

    def __init__(self, stream: BinaryIO, label: str, total: int, progress: Progress) -> None:
        self._stream, self._label, self._total, self._progress = stream, label, total, progress
        self._done = 0

    def read(self, n: int) -> bytes:
        data = self._stream.read(n)
        self._done += len(data)
        self._progress(self._label, self._done, self._total)
        return data
