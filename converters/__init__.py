"""Checkpoints of other formats to ``.vqm`` and back (SPEC section 18).

``convert`` compresses a checkpoint, ``extract`` writes one from a ``.vqm``, ``open_source`` opens any of them. What a
format needs (torch, h5py, onnx, …) is imported when a file of it is met.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, cast

from vqformat.encode.model import encode_model
from vqformat.encode.options import Options
from vqformat.encode.recipe import as_recipe
from vqformat.encode.report import Report
from vqformat.errors import ConversionError

from .detect import Kind, detect_format
from .source import Source

__all__ = ["Source", "convert", "extract", "open_source"]


def convert(src: str | os.PathLike[str], dst: str | os.PathLike[str] | BinaryIO, *, options: Options | None = None,
            metadata: Mapping[str, Any] | None = None, include_optimizer: bool = False, overwrite: bool = False,
            **keywords: Any) -> Report:  # fmt: skip
    """Compress a checkpoint into a ``.vqm``.

    Args:
        src: Checkpoint, told by its content: PyTorch (zip, legacy, TorchScript), safetensors, Keras (``.keras``,
            ``.weights.h5``, legacy ``.h5``), HDF5, ONNX, GGUF, NumPy archive or array, or another ``.vqm``. Of a
            sharded model, the index or the folder.
        dst: Path, or a binary stream.
        options: What is asked of the encoder; or give its parts as keywords, as to ``vqformat.save_file``.
        metadata: Added to what the checkpoint has.
        include_optimizer: Whether the state of training that lies beside the weights (the optimizer's, epoch numbers)
            is kept too. Its tensors are stored exactly, unless a pattern of the recipe names them.
        overwrite: Whether ``dst`` may be replaced.

    Returns:
        What became of each tensor; ``notes`` says what was left out or stored twice.

    Raises:
        ConversionError: The checkpoint cannot be read.
        EncodeError: A tensor or the options cannot be written, or a budget cannot be met.
        ImportError: A package for the format is not installed; the message says which.
        FileExistsError: ``dst`` exists and ``overwrite`` is false.
    """
    if options is None:
        keywords["recipe"] = as_recipe(keywords.get("recipe"))
        options = Options(**keywords)
    elif keywords:
        raise TypeError(f"options and {', '.join(keywords)} exclude each other")
    if not overwrite and isinstance(dst, (str, os.PathLike)) and os.path.exists(dst):
        raise FileExistsError(f"{os.fspath(dst)!r} exists; it was not replaced")  # said before the work is done
    _check_other(src, dst)
    with open_source(src, include_optimizer=include_optimizer) as source:
        stored = {**source.stored_metadata(), **(metadata or {})}
        report = encode_model(source.tensors, dst, stored, options, overwrite=overwrite)
        report.notes.extend(source.notes)
        report.left_out.extend(source.left_out)
    return report


def extract(src: str | os.PathLike[str], dst: str | os.PathLike[str], *, names: Iterable[str] | None = None,
            overwrite: bool = False) -> list[str]:  # fmt: skip
    """Write the tensors of a ``.vqm``, or of a checkpoint that ``convert`` reads, to a checkpoint of another format.

    Names, shapes and dtypes stay. If the source was of the same format, its layout comes back too: a state dict under
    the keys where it lay, Keras's groups and configuration, ONNX's graph. Tied tensors are tied in a state dict and in
    HDF5, and copies elsewhere. NumPy has no bfloat16, no 8-bit floats and nothing below 8 bits: those are widened, to
    the same values. A state dict and an ONNX model are put together in memory; the others take one tensor at a time.

    Args:
        dst: Its ending says the format: ``.pt``, ``.pth`` or ``.bin``, ``.safetensors``, ``.npz``, ``.h5`` or
            ``.hdf5``; ``.keras``, ``.weights.h5`` and ``.onnx`` if the source was one.
        names: Names or patterns (``*``, ``?``, ``[…]``) of the tensors wanted; None for all.
        overwrite: Whether ``dst`` may be replaced.

    Returns:
        Notes: what was left out of ``src``, and what the format of ``dst`` could not keep.

    Raises:
        ConversionError: ``src`` cannot be read, or the format of ``dst`` is unknown or cannot hold a tensor.
        TensorNotFoundError: No tensor has one of the names.
        FileExistsError: ``dst`` exists and ``overwrite`` is false.
    """
    from .export import export

    _check_other(src, dst)
    with open_source(src) as source:
        return [*source.notes, *export(source, Path(dst), names=names, overwrite=overwrite)]


def _check_other(src: str | os.PathLike[str], dst: Any) -> None:
    """Raise ConversionError if source and destination are the same file."""
    is_path = isinstance(dst, (str, os.PathLike))
    if is_path and os.path.exists(src) and os.path.exists(dst) and os.path.samefile(src, dst):
        raise ConversionError(f"{os.fspath(dst)!r} is the source itself; write to another file")


# Kind -> module and function that opens it
_READERS: dict[Kind, tuple[str, str]] = {
    "vqm": ("vqm", "open_vqm"),
    "pytorch": ("pytorch", "open_pytorch"),
    "pytorch-index": ("pytorch", "open_sharded"),
    "torchscript": ("torchscript", "open_torchscript"),
    "safetensors": ("safetensors", "open_safetensors"),
    "safetensors-index": ("safetensors", "open_sharded"),
    "keras": ("keras", "open_keras"),
    "keras-shards": ("keras", "open_shards"),
    "hdf5": ("keras", "open_hdf5"),
    "onnx": ("onnx", "open_onnx"),
    "gguf": ("gguf", "open_gguf"),
    "npz": ("npz", "open_npz"),
    "npy": ("npz", "open_npy"),
}
_WITH_OPTIMIZER = ("pytorch", "keras", "keras-shards", "hdf5")


def open_source(path: str | os.PathLike[str], *, include_optimizer: bool = False) -> Source:
    """Open a checkpoint of any format that can be read, told by its content.

    Args:
        include_optimizer: Whether the state of training that lies beside the weights is kept too.

    Raises:
        FileNotFoundError: There is no such file.
        ConversionError: It cannot be read; the message says what it is and what would work.
        ImportError: A package for the format is not installed; the message says which.
    """
    kind, file = detect_format(Path(path))
    module, function = _READERS[kind]
    open_it = getattr(import_module(f".{module}", __package__), function)
    if kind in _WITH_OPTIMIZER:
        return cast(Source, open_it(file, include_optimizer=include_optimizer))
    return cast(Source, open_it(file))
