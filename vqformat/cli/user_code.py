"""Functions of the user's own Python files, which the command line names as ``FILE.py:NAME``, and errors in them."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from operator import length_hint
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from vqformat.converters import detect

from ..errors import VqmError, near_names
from ..text import escape, one_line
from .text import FileError, UserCodeError

# The folders of this package and of its converters
_OURS = (f"{Path(__file__).parent.parent}{os.sep}", f"{Path(detect.__file__).parent}{os.sep}")


def load_object(place: str) -> Any:
    """Run a Python file and return what it calls by a name. A file runs once, however often it is named.

    Args:
        place: ``FILE.py:NAME``.

    Raises:
        FileNotFoundError: There is no such file.
        FileError: It has nothing of this name. The message has similar names.
        UserCodeError: The file raises an error.
    """
    file, _, name = place.rpartition(":")
    if not os.path.isfile(file):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), file)
    module = _module(Path(file))
    if not hasattr(module, name):
        own = [key for key, value in vars(module).items() if not key.startswith("_")
               and getattr(value, "__module__", module.__name__) == module.__name__
               and not isinstance(value, ModuleType)]  # fmt: skip
        hint = near_names(name, own) if own else "; it defines nothing"
        raise FileError(f"{escape(file)} has no function {name!r}{hint}")
    return getattr(module, name)


def call(place: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of the user.

    Raises:
        UserCodeError: It raises an error.
    """
    with running(place):
        return function(*arguments)


@contextlib.contextmanager
def running(what: str, hint: Callable[[Exception], str] | None = None) -> Iterator[None]:
    """Context in which code of the user runs, which this package may have called.

    Args:
        what: What runs, such as ``FILE.py:NAME``.
        hint: Says more of an error, or returns an empty text.

    Raises:
        UserCodeError: The user's code, or what it calls, raised an error.
        FileError: This package raised a ValueError; the message is the same.
    """
    try:
        yield
    except (VqmError, FileError, UserCodeError, BrokenPipeError, MemoryError):
        raise
    except (Exception, SystemExit) as err:
        if _raised_here(err):
            if isinstance(err, ValueError):
                raise FileError(one_line(str(err))) from err
            raise
        more = "" if hint is None or not isinstance(err, Exception) else hint(err)
        said = f": {err}" if str(err) else ""
        raise UserCodeError(one_line(f"{escape(what)} raised {type(err).__name__}{said}{more}"), _lines(err)) from err


class Batches:
    """The first batches of an iterable.

    Args:
        batches: The iterable.
        n_most: Most batches.
        change: What is done with each batch; None for nothing.

    Attributes:
        n_seen: Number of batches that were taken.
    """

    def __init__(self, batches: Iterable[Any], n_most: int, change: Callable[[Any], Any] | None = None) -> None:
        self._batches, self._n_most, self._change = batches, n_most, change
        self.n_seen = 0

    def __iter__(self) -> Iterator[Any]:
        for batch in islice(self._batches, self._n_most):
            self.n_seen += 1
            yield batch if self._change is None else self._change(batch)

    def __length_hint__(self) -> int:
        return min(length_hint(self._batches), self._n_most)


def given_batches(place: str, n_most: int, change: Callable[[Any], Any] | None = None) -> Batches:
    """The batches that a function of the user returns, or that have the name.

    Args:
        place: ``FILE.py:NAME``.
        n_most, change: As for ``Batches``.

    Raises:
        FileError: It is no iterable of batches.
        UserCodeError: The function raises an error.
    """
    found = load_object(place)
    gave = "is"
    if callable(found):
        found, gave = call(place, found), "returned"
    if isinstance(found, Mapping) or hasattr(found, "shape") or not isinstance(found, Iterable):
        raise FileError(f"{escape(place)} {gave} one {type(found).__name__}; an iterable of batches is allowed, such as"
                        " [batch]")  # fmt: skip
    return Batches(found, n_most, change)


def _module(path: Path) -> ModuleType:
    """The module of a file. Its folder is where it imports other files from, as with ``python FILE.py``."""
    path = path.resolve()
    for module in list(sys.modules.values()):
        known = getattr(module, "__file__", None)
        if isinstance(known, str) and known.endswith(".py") and os.path.realpath(known) == str(path):
            return module
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    # A file may have the name of a module that is imported already
    name = path.stem if path.stem not in sys.modules else f"_vqm_{path.stem}_{len(sys.modules)}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # the name of the file ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with running(path.name):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _lines(err: BaseException) -> list[str]:
    """The lines of a traceback, without the frames of this package that lead to the user's code."""
    trace = err.__traceback__
    while trace is not None and _is_on_the_way(trace):
        trace = trace.tb_next
    lines = "".join(traceback.TracebackException(type(err), err, trace).format()).splitlines()
    return [escape(line) for line in lines]


def _is_on_the_way(trace: TracebackType) -> bool:
    """Whether a frame is one of this package or of Python's import, and not yet the user's."""
    file = trace.tb_frame.f_code.co_filename
    return file.startswith((*_OURS, "<frozen importlib"))


def _raised_here(err: BaseException) -> bool:
    """Whether an error was raised by this package itself."""
    trace = err.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code.co_filename.startswith(_OURS)

