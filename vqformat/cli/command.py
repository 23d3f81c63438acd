"""One command line of ``vqm``: exit codes and error messages. The verbs are in the other modules of this package."""

from __future__ import annotations

import argparse
import contextlib
import datetime  # noqa: F401  # before NumPy, which imports it in C: there an interrupt would become an ImportError
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

from .parsers import UsageError, spelled_out
from .text import UserCodeError, describe_error, message

SIGNALLED = 128  # added to the number of a signal that ends the work
BROKEN_PIPE = 141  # 128 + SIGPIPE


def run(argv: Sequence[str] | None) -> int:
    """Run one command line; see ``main``. An interrupt is raised."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # printing a name must not fail because of the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    try:
        # These need NumPy and other packages, which may be missing
        from ..format.limits import limit_memory
        from .arguments import build_parser, verbs_of

        parser = build_parser()
        argv = sys.argv[1:] if argv is None else argv
        args = parser.parse_args(spelled_out(argv, parser, list(verbs_of(parser))))
        with _terminating(), limit_memory(getattr(args, "max_memory", None)):
            # The module of the verb is imported only now, so that `vqm info` does not wait for torch
            run_verb = getattr(importlib.import_module(f".{args.module}", __package__), args.function)
            code: int = run_verb(args)
            if sys.stdout is not None:  # None if it is closed
                sys.stdout.flush()
            return code
    except UsageError as err:
        verb: argparse.ArgumentParser = args.parser
        verb.error(str(err))
    except BrokenPipeError:
        _close_stdout()
        return BROKEN_PIPE
    except Exception as err:
        if os.environ.get("VQM_TRACEBACK"):
            raise
        with contextlib.suppress(OSError):
            message("error", describe_error(err))
            if isinstance(err, UserCodeError) and sys.stderr is not None:
                print("\n".join(err.traceback), file=sys.stderr)
        return 1


def _close_stdout() -> None:
    """Redirect stdout to the null device: the interpreter would report an error when it flushes buffered output."""
    with contextlib.suppress(OSError, ValueError):  # stdout may have no descriptor, as in a test
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def _terminating() -> Iterator[None]:
    """Context in which SIGTERM and SIGHUP raise SystemExit, so that temporary files are removed."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(SIGNALLED + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup ignores it
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
