"""The command ``vqm``. What it needs is imported in ``main``, so that an interrupt meanwhile is caught."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as in typing, whose import takes a while
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

INTERRUPTED = 130  # 128 + SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: Arguments after the name of the program; None for those of the process.

    Returns:
        The exit code: 0 success, 1 a bad file or failed work (one line on stderr), 2 wrong usage, 130 interrupted. With
        VQM_TRACEBACK=1 in the environment, errors are raised instead of printed.

    Raises:
        SystemExit: By argparse, with code 2 for wrong usage, and 0 after help.
    """
    try:
        from .command import run

        return run(argv)
    except KeyboardInterrupt:
        try:  # contextlib may be what was being imported
            print("vqm: interrupted", file=sys.stderr)
        except OSError:
            return INTERRUPTED
        return INTERRUPTED
