"""Which files a command line means: ``-``, default names, what must not be overwritten, which tensors."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO

from ..errors import TensorNotFoundError, VqmError
from .arguments import UsageError
from .text import describe_error, escape

STDIO = "-"
_SUFFIXES = (".safetensors.index.json", ".safetensors", ".bin.index.json", ".pth.tar", ".pt.tar", ".pt", ".pth", ".th",
             ".tar", ".ckpt", ".bin", ".pkl", ".pickle", ".jit", ".npz", ".npy", ".weights.json", ".weights.h5", ".h5",
             ".hdf5", ".keras", ".onnx", ".gguf", ".vqm", ".pt2", ".distcp", ".tflite", ".msgpack", ".index",
             "-weights_manifest.json", ".json")  # fmt: skip


class FileError(Exception):
    """Work that failed, told on one line that names the file."""


@contextlib.contextmanager
def naming(file: str, path: Path | None = None) -> Iterator[None]:
    """Put the file's name before an error raised inside, unless the error names it.

    Args:
        path: Where the file is read from, if not from where its name says.

    Raises:
        FileError: In place of a VqmError.
    """
    try:
        yield
    except VqmError as err:
        text = describe_error(err)
        if path is not None:
            text = text.replace(repr(str(path)), label(file))
        names_file = any(text.startswith(name) for name in (repr(file), label(file)))
        raise FileError(text if names_file else f"{label(file)}: {text}") from err


def label(file: str) -> str:
    """A file of the command line, safe to print."""
    return "stdin" if file == STDIO else escape(file)


@contextlib.contextmanager
def local_path(file: str) -> Iterator[Path]:
    """A path to read from: that of a temporary copy where the file is ``-``. Errors raised inside name the file."""
    if file != STDIO:
        with naming(file):
            yield Path(file)
        return
    with tempfile.TemporaryDirectory(prefix="vqm-") as folder:
        path = Path(folder) / "stdin"
        with open(path, "wb") as copy:
            shutil.copyfileobj(stdin(), copy)
        with naming(file, path):
            yield path


@contextlib.contextmanager
def opened(name: str) -> Iterator[BinaryIO]:
    """The file, or stdin, to be read front to back."""
    if name == STDIO:
        yield stdin()
        return
    with open(name, "rb") as stream:
        yield stream


def stdin() -> BinaryIO:
    """The standard input, as bytes."""
    if sys.stdin is None:
        raise OSError("stdin is closed")
    return sys.stdin.buffer


def stdout(*, force: bool) -> BinaryIO:
    """The standard output, as bytes.

    Raises:
        UsageError: It is a terminal, and nobody insists.
    """
    if sys.stdout is None:
        raise OSError("stdout is closed")
    if sys.stdout.isatty() and not force:
        raise UsageError("a .vqm file is not for a terminal; redirect stdout, or add -f")
    return sys.stdout.buffer


def default_output(source: str) -> Path:
    """``folder/model.vqm`` for ``folder/model.pt``; an unknown suffix stays and ``.vqm`` is added.

    Raises:
        UsageError: The source has no name to begin with, or is itself such a file.
    """
    if source == STDIO:
        raise UsageError("reading from stdin needs -o FILE.vqm, or -o - for stdout")
    path = Path(source)
    if path.name in ("", ".."):  # a folder given as "." or ".."
        path = path.resolve()
    suffix = next((suffix for suffix in _SUFFIXES if path.name.lower().endswith(suffix)), "")
    output = path.with_name(path.name[: len(path.name) - len(suffix)] + ".vqm")
    if output == path:
        raise UsageError("SRC is a .vqm file already; -o FILE.vqm tells where the new one goes")
    return output


def is_special(path: Path) -> bool:
    """Whether this is a device, pipe or socket: something to write to, never to be replaced by a file."""
    return path.exists() and not path.is_file() and not path.is_dir()


def check_output(output: Path, source: str, *, force: bool) -> None:
    """Raise early what would be raised after all the work.

    Raises:
        UsageError: Source and output are the same file.
        OSError: The output exists and nobody insists, or is a folder, a device or a pipe, or is to be in no folder.
    """
    if is_special(output):
        raise OSError(f"{str(output)!r} is a device or pipe, not a file")
    if output.is_dir():
        raise IsADirectoryError(f"{str(output)!r} is a folder")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"{str(output)!r} cannot be written: there is no folder {str(output.parent)!r}")
    if not os.path.lexists(output):
        return
    if source != STDIO and os.path.exists(source) and output.exists() and os.path.samefile(source, output):
        raise UsageError("the output is the source itself")
    if not force:
        raise FileExistsError(f"{str(output)!r} exists; -f replaces it")


def select(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The names that are wanted, in file order; all if none is named.

    Args:
        wanted: Names, or patterns with wildcards. A name that is there counts as such, whatever is in it.

    Raises:
        TensorNotFoundError: One matches nothing; the message has near matches.
    """
    if not wanted:
        return list(names)
    present = set(names)
    found = set()
    for pattern in wanted:
        matches = [pattern] if pattern in present else [name for name in names if fnmatchcase(name, pattern)]
        if not matches:
            raise TensorNotFoundError(pattern, names)
        found.update(matches)
    return [name for name in names if name in found]
