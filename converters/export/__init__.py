"""Writing the tensors of a ``.vqm`` to other formats: one module for each format, chosen by the suffix of the path."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from importlib import import_module
from pathlib import Path

from vqformat.encode.source import SourceTensor
from vqformat.errors import ConversionError, TensorNotFoundError
from vqformat.files import NewFiles

from ..source import Source
from .data_file import DataFile

Write = Callable[..., None]  # of a stream, the tensors, the source, and a list of notes to append to

# Suffix (longer ones first) -> module and function that writes such a file and appends to a list of notes
_WRITERS = {
    ".weights.h5": ("keras", "write_weights"),
    ".keras": ("keras", "write_keras"),
    ".h5": ("hdf5", "write_hdf5"),
    ".hdf5": ("hdf5", "write_hdf5"),
    ".pt": ("pytorch", "write_pytorch"),
    ".pth": ("pytorch", "write_pytorch"),
    ".bin": ("pytorch", "write_pytorch"),
    ".safetensors": ("safetensors", "write_safetensors"),
    ".npz": ("npz", "write_npz"),
    ".onnx": ("onnx", "write_onnx"),
    ".gguf": ("gguf", "write_gguf"),
}
SUFFIXES = tuple(_WRITERS)


def export(source: Source, dst: Path, *, names: Iterable[str] | None, overwrite: bool) -> list[str]:
    """Write the tensors of a source to a checkpoint, in the format of the suffix.

    Args:
        names: Names or patterns (``*``, ``?``, ``[…]``) of tensors; None for all.
        overwrite: Whether an existing file may be replaced.

    Returns:
        Notes of the source, and on what the format could not keep.

    Raises:
        ConversionError: The format is unknown, or cannot hold a tensor.
        TensorNotFoundError: A name or pattern matches no tensor.
        FileExistsError: The file exists and ``overwrite`` is false.
    """
    write = _writer(dst)  # before the file is created: it may need a package that is not installed
    tensors = select(source.tensors, names)
    notes = list(source.notes)
    with NewFiles(overwrite=overwrite) as files:
        stream = files.open(dst)
        # ONNX is the one format whose values may need a second file; beside a pipe there is none
        if dst.name.lower().endswith(".onnx") and (dst.is_file() or not dst.exists()):
            write = partial(write, data=DataFile(dst, files))
        write(stream, tensors, source, notes)
    return notes


def _writer(dst: Path) -> Write:
    for suffix, (module, function) in _WRITERS.items():
        if dst.name.lower().endswith(suffix):
            write: Write = getattr(import_module(f".{module}", __package__), function)
            return write
    raise ConversionError(f"{str(dst)!r} does not say which format is wanted; end it in {', '.join(SUFFIXES)}")


def select(tensors: list[SourceTensor], names: Iterable[str] | None) -> list[SourceTensor]:
    """The selected tensors, in file order. An alias whose target is not selected becomes a tensor of its own."""
    if names is None:
        return tensors
    known = {tensor.name for tensor in tensors}
    wanted: set[str] = set()
    for pattern in names:
        found = {pattern} & known or {name for name in known if fnmatchcase(name, pattern)}
        if not found:
            raise TensorNotFoundError(pattern, known)
        wanted |= found
    kept: dict[str, str] = {}  # name of a tensor that is not an alias -> its first selected name
    result = []
    for tensor in tensors:
        if tensor.name in wanted:
            first = kept.setdefault(tensor.alias_of or tensor.name, tensor.name)
            alias_of = None if first == tensor.name else first
            result.append(replace(tensor, alias_of=alias_of))
    return result
