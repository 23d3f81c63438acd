"""The files of a command line: ``-`` for stdin and stdout, default names, protection of outputs, names of tensors."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from ..errors import TensorNotFoundError, VqmError
from ..files import temporary_space
from ..format.shard_index import INDEX_SUFFIX
from ..hub import is_hub_path, open_hub_file
from ..leftovers import temporary_folder
from ..read.shards import Shards, index_of, opened_model
from ..text import escape
from .parsers import UsageError
from .text import FileError, describe_error, message, to_json

STDIO = "-"
_SUFFIXES = (".safetensors.index.json", ".safetensors", ".bin.index.json", ".pth.tar", ".pt.tar", ".pt", ".pth", ".th",
             ".tar", ".ckpt", ".bin", ".pkl", ".pickle", ".jit", ".npz", ".npy", ".weights.json", ".weights.h5", ".h5",
             ".hdf5", ".keras", ".onnx", ".gguf", INDEX_SUFFIX, ".vqm", ".pt2", ".distcp", ".tflite", ".msgpack",
             ".index", "-weights_manifest.json", ".json")  # fmt: skip
_WILDCARDS = "*?["


@contextlib.contextmanager
def naming(file: str, path: Path | None = None) -> Iterator[None]:
    """Context that adds the name of a file to errors, unless they have it.

    Args:
        file: The file, as on the command line.
        path: The path from which it is read, if that is another one.

    Raises:
        FileError: Instead of a VqmError.
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
    """The name of a file of the command line, safe to print."""
    return "stdin" if file == STDIO else escape(file)


def check_source(file: str) -> None:
    """Check that a file exists, before anything else is said of the command line.

    Raises:
        FileNotFoundError: It does not.
    """
    if file == STDIO or is_hub_path(file) or os.path.exists(file) or index_of(file) is not None:
        return
    from vqformat.converters.detect import detect_format

    detect_format(Path(file))  # a TensorFlow checkpoint is named by the beginning of its files' names


def for_each(args: argparse.Namespace, files: Sequence[str], work: Callable[[str], Any], out: TextIO | None) -> int:
    """Do the work for each file. An error in one of several is told, and the others follow.

    Args:
        work: Returns the JSON document on a file.
        out: Where the documents are printed.

    Returns:
        The exit code: that of the worst file.
    """
    documents: list[Any] = []
    code = 0
    for file in files:
        try:
            documents.append(work(file))
        except (UsageError, BrokenPipeError):
            raise
        except Exception as err:
            if len(files) == 1 or os.environ.get("VQM_TRACEBACK"):
                raise
            text = describe_error(err)
            names_file = any(name in text for name in (repr(file), label(file)))
            message("error", text if names_file else f"{label(file)}: {text}")
            documents.append({"file": file, "error": text})
            code = 1
    if args.json:
        print(to_json(documents[0] if len(files) == 1 else documents), file=out)
    return code


@contextlib.contextmanager
def local_path(file: str) -> Iterator[Path]:
    """Context that gives the path of a file. Errors name the file.

    For ``-`` it is that of a temporary copy of stdin, and for an ``hf://`` path that of a file of the Hub.
    """
    if file != STDIO and not is_hub_path(file):
        with naming(file):
            if is_special(Path(file)):
                from vqformat.converters.model_folder import check_regular

                check_regular(Path(file))  # a pipe would be waited for, and a device read without end
            yield model_path(file)
        return
    with temporary_folder() as folder:
        with temporary_space(folder):
            path = _copied(file, folder)
        with naming(file, path):
            yield path


def model_path(file: str) -> Path:
    """The path of a file, or of the index of its shards if it is absent and they are there. A folder stays one."""
    index = None if os.path.exists(file) else index_of(file)
    return index if isinstance(index, Path) else Path(file)


def _copied(file: str, folder: Path) -> Path:
    """The path of a copy of stdin or of a file of the Hub; of a model in several files that of the copied index."""
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(opened(file) if file == STDIO else opened_model(file))
        if not isinstance(source, Shards):
            with open(folder / "copy", "wb") as copy:
                shutil.copyfileobj(source, copy)
            return folder / "copy"
        for at, name in enumerate(source.index.shards):
            with source.open(at) as stream, open(folder / name, "wb") as copy:
                shutil.copyfileobj(stream, copy)
    path = folder / f"copy{INDEX_SUFFIX}"
    path.write_bytes(source.text)
    return path


@contextlib.contextmanager
def opened(name: str) -> Iterator[BinaryIO]:
    """Context that gives the binary stream of a file, or stdin for ``-``."""
    if name == STDIO:
        yield stdin()
        return
    with open_hub_file(name, in_order=True) if is_hub_path(name) else open(name, "rb") as stream:
        yield stream


def stdin() -> BinaryIO:
    """The standard input as a binary stream."""
    if sys.stdin is None:
        raise OSError("stdin is closed")
    return sys.stdin.buffer


def stdout(*, force: bool) -> BinaryIO:
    """The standard output as a binary stream.

    Raises:
        UsageError: It is a terminal, and ``force`` is false.
    """
    if sys.stdout is None:
        raise OSError("stdout is closed")
    if sys.stdout.isatty() and not force:
        raise UsageError("a model is not for a terminal; redirect stdout, or add -f")
    return sys.stdout.buffer


def default_output(source: str, *, in_folder: bool = False) -> Path:
    """The default output: ``folder/model.vqm`` for ``folder/model.pt``. ``.vqm`` is appended to an unknown suffix.

    For an ``hf://`` path it is in the working directory.

    Args:
        in_folder: Whether it goes to another folder, where a ``.vqm`` is not its own output.

    Raises:
        UsageError: The source is stdin, or is a ``.vqm`` itself.
    """
    if source == STDIO:
        raise UsageError("reading from stdin needs -o FILE.vqm, or -o - for stdout")
    path = Path(source.rpartition("/")[2] if is_hub_path(source) else source)
    if path.name in ("", ".."):  # a folder given as "." or ".."
        path = path.resolve()
    suffix = next((suffix for suffix in _SUFFIXES if path.name.lower().endswith(suffix)), "")
    output = path.with_name(path.name[: len(path.name) - len(suffix)] + ".vqm")
    if output == path and not in_folder:
        raise UsageError("SRC is a .vqm file already; -o FILE.vqm tells where the new one goes")
    return output


def outputs_for(sources: Sequence[str], output: str | None) -> list[Path]:
    """The outputs of sources: beside them, or in a folder, or the one that is named.

    Raises:
        UsageError: There are several sources for one output, or two would have the same.
        OSError: The folder cannot be made.
    """
    is_folder = output is not None and output != STDIO and (os.path.isdir(output) or output.endswith(("/", os.sep)))
    if output is not None and not is_folder:
        if len(sources) > 1:
            raise UsageError(f"-o {output!r} is one file, and there are {len(sources)} sources; -o DIR/ names a folder")
        return [Path(output)]
    outputs: list[Path] = []
    for source in sources:
        beside = default_output(source, in_folder=is_folder)
        path = Path(str(output)) / beside.name if is_folder else beside
        if path in outputs:
            raise UsageError(f"both {sources[outputs.index(path)]!r} and {source!r} would become {str(path)!r}")
        outputs.append(path)
    if is_folder:
        os.makedirs(str(output), exist_ok=True)
    return outputs


def looks_like_file(text: str) -> bool:
    """Whether a file has this name, or would: it ends like a file, and is no pattern."""
    return os.path.exists(text) or (text.lower().endswith(_SUFFIXES) and not any(char in text for char in _WILDCARDS))


def is_special(path: Path) -> bool:
    """Whether a path is a device, a pipe or a socket, which can be written to but must not be replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()


def check_output(output: Path, source: str, *, force: bool) -> None:
    """Check an output before the work begins, and not only when it is written.

    Raises:
        UsageError: Source and output are the same file.
        OSError: The output exists and ``force`` is false; or it is a folder, a device or a pipe; or its folder does not
            exist.
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
    """Select names of tensors.

    Args:
        names: All names, in file order.
        wanted: Names or patterns with wildcards; empty for all. A text that equals a name is not a pattern.

    Returns:
        The selected names, in file order.

    Raises:
        TensorNotFoundError: A name or pattern matches nothing. The message has similar names.
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
