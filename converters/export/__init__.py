"""From a .vqm back to a checkpoint: one module for each format, found by the suffix of the file's name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import BinaryIO

from vqformat.encode.source import SourceTensor
from vqformat.errors import ConversionError, TensorNotFoundError
from vqformat.files import NewFile

from ..source import Source

Write = Callable[[BinaryIO, list[SourceTensor], Source, list[str]], None]

# Suffix, the longer ones first -> module and function that writes such a file and appends to a list of notes
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
    """Write the tensors of a source to a checkpoint whose format its name says.

    Args:
        names: Names or patterns (``*``, ``?``, ``[…]``) of the tensors wanted; None for all.

    Returns:
        Notes: those of the source, and what the format could not keep.

    Raises:
        ConversionError: The format cannot hold a tensor, or is unknown.
        TensorNotFoundError: No tensor has one of the names.
        FileExistsError: The file exists and ``overwrite`` is false.
    """
    write = _writer(dst)  # before a file is begun, since it may need a package that is not there
    tensors = select(source.tensors, names)
    notes = list(source.notes)
    with NewFile(dst, overwrite=overwrite) as stream:
        write(stream, tensors, source, notes)
    return notes


def _writer(dst: Path) -> Write:
    for suffix, (module, function) in _WRITERS.items():
        if dst.name.lower().endswith(suffix):
            write: Write = getattr(import_module(f".{module}", __package__), function)
            return write
    raise ConversionError(f"{str(dst)!r} does not say which format is wanted; end it in {', '.join(SUFFIXES)}")


def select(tensors: list[SourceTensor], names: Iterable[str] | None) -> list[SourceTensor]:
    """The tensors that are wanted, in their order; an alias whose target is not wanted stands for itself."""
    if names is None:
        return tensors
    known = {tensor.name for tensor in tensors}
    wanted: set[str] = set()
    for pattern in names:
        found = {pattern} & known or {name for name in known if fnmatchcase(name, pattern)}
        if not found:
            raise TensorNotFoundError(pattern, known)
        wanted |= found
    kept: dict[str, str] = {}  # tensor that is not an alias -> the first wanted name of it
    result = []
    for tensor in tensors:
        if tensor.name in wanted:
            first = kept.setdefault(tensor.alias_of or tensor.name, tensor.name)
            alias_of = None if first == tensor.name else first
            result.append(replace(tensor, alias_of=alias_of))
    return result
