"""Checkpoints of other formats to ``.vqm`` and back (SPEC section 18).

``convert`` compresses a checkpoint, ``extract`` writes one from a ``.vqm``, ``open_source`` opens a file of any of the
formats. A package that a format needs (torch, h5py, onnx, …) is imported when a file of that format is opened.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from vqformat.encode.model import encode_model
from vqformat.encode.options import Options
from vqformat.encode.outcome_folder import kept_outcomes
from vqformat.encode.recipe import as_recipe
from vqformat.encode.report import Report
from vqformat.encode.tensor_work import Workplace
from vqformat.errors import ConversionError

from .detect import Kind, detect_format
from .opener import SourceOpener
from .source import Source, growth_notes, quantized_notes

__all__ = ["Source", "convert", "extract", "open_source"]


def convert(src: str | os.PathLike[str], dst: str | os.PathLike[str] | BinaryIO, *, options: Options | None = None,
            metadata: Mapping[str, Any] | None = None, include_optimizer: bool = False, overwrite: bool = False,
            resume: bool | None = False, **keywords: Any) -> Report:  # fmt: skip
    """Compress a checkpoint into a ``.vqm``.

    Args:
        src: Checkpoint: PyTorch (zip, legacy, TorchScript, distributed, torch.export), safetensors, Keras (``.keras``,
            ``.weights.h5``, legacy ``.h5``), HDF5, TensorFlow (SavedModel, checkpoint, TensorFlow.js, ``.tflite``),
            Flax, ONNX, GGUF, NumPy archive or array, or another ``.vqm``. The format is detected from the content. For
            a sharded model, the index or the folder.
        dst: Path, or a binary stream.
        options: Options of the encoder. They can be given as keyword arguments instead, as for ``vqformat.save_file``.
        metadata: Added to the metadata of the checkpoint.
        include_optimizer: Whether the training state beside the weights (of the optimizer, epoch numbers) is stored,
            too. Its tensors are stored exactly, unless a pattern of the recipe matches them.
        overwrite: Whether an existing ``dst`` may be replaced.
        resume: Whether to continue a conversion that was stopped. Then each tensor that is finished is kept in the
            folder ``dst`` + ``.part`` until the file is complete, and those that are there are not encoded again. None
            to keep tensors of a source of at least 64 MiB so, and to use none that are there.

    Returns:
        A report on each tensor. Its ``notes`` say what was left out or stored twice.

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
        raise FileExistsError(f"{os.fspath(dst)!r} exists; it was not replaced")  # before the work is done
    _check_other(src, dst)
    with open_source(src, include_optimizer=include_optimizer) as source:
        stored = {**source.stored_metadata(), **(metadata or {})}
        nbytes = sum(tensor.nbytes for tensor in source.tensors)
        opener = SourceOpener.of(src, include_optimizer=include_optimizer)
        with kept_outcomes(dst, nbytes, resume=resume) as kept:
            report = encode_model(source.tensors, dst, stored, options, overwrite=overwrite,
                                  place=Workplace(opener=opener, outcomes=kept.path))  # fmt: skip
        report.notes.extend(kept.notes)
        report.left_out.extend(source.left_out)
        report.source_file_nbytes = source.file_nbytes
        report.grown.extend(growth_notes(report, source.format))
        report.notes.extend([*source.notes, *quantized_notes(report, source.tensors), *report.grown])
    return report


def extract(src: str | os.PathLike[str], dst: str | os.PathLike[str], *, names: Iterable[str] | None = None,
            overwrite: bool = False) -> list[str]:  # fmt: skip
    """Write the tensors of a ``.vqm``, or of a checkpoint that ``convert`` reads, to a checkpoint of another format.

    Names, shapes and dtypes are kept. If the ``.vqm`` was made from a file of the same format, its structure is
    restored: the keys that lead to a state dict, the groups and the configuration of Keras, the graph of ONNX, the
    metadata and blocks of GGUF. Tied tensors are tied in a state dict and in HDF5; in other formats they are copies.
    NumPy has no bfloat16, no 8-bit floats and no dtypes below 8 bits: these are converted to wider dtypes with the same
    values. A state dict and an ONNX model of at most 2 GiB are assembled in memory; for others one tensor at a time is.
    An ONNX model that would have more keeps its values in a second file, ``model.onnx.data`` for ``model.onnx``.

    Args:
        src: Path of the ``.vqm``, or of a checkpoint that ``convert`` reads.
        dst: Path. Its suffix determines the format: ``.pt``, ``.pth`` or ``.bin``, ``.safetensors``, ``.npz``, ``.h5``
            or ``.hdf5``; also ``.keras``, ``.weights.h5``, ``.onnx`` or ``.gguf``, if the ``.vqm`` was made from such a
            file.
        names: Names or patterns (``*``, ``?``, ``[…]``) of tensors; None for all.
        overwrite: Whether an existing ``dst`` may be replaced.

    Returns:
        Notes on what was left out of ``src``, and on what the format of ``dst`` could not keep.

    Raises:
        ConversionError: ``src`` cannot be read, or the format of ``dst`` is unknown or cannot hold a tensor.
        TensorNotFoundError: A name or pattern matches no tensor.
        FileExistsError: ``dst``, or the second file of an ONNX model, exists and ``overwrite`` is false.
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


# Kind of file -> module and function that opens it
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
    "pytorch-distributed": ("distributed", "open_distributed"),
    "torch-export": ("torch_export", "open_export"),
    "savedmodel": ("tensorflow", "open_saved_model"),
    "tensorflow": ("tensorflow", "open_tensorflow"),
    "tfjs": ("tfjs", "open_tfjs"),
    "tflite": ("tflite", "open_tflite"),
    "flax": ("flax", "open_flax"),
    "flax-index": ("flax", "open_sharded"),
}
_IN_SEVERAL_FILES = ("pytorch-index", "safetensors-index", "keras-shards", "pytorch-distributed", "savedmodel",
                     "tensorflow", "tfjs", "flax-index")  # fmt: skip
_WITH_OPTIMIZER = ("pytorch", "keras", "keras-shards", "hdf5", "pytorch-distributed", "savedmodel", "tensorflow",
                   "flax")  # fmt: skip


def open_source(path: str | os.PathLike[str], *, include_optimizer: bool = False) -> Source:
    """Open a checkpoint of any supported format, which is detected from its content.

    Args:
        path: Path of a file, or of a folder that has one.
        include_optimizer: Whether the training state beside the weights is included.

    Raises:
        FileNotFoundError: There is no such file.
        ConversionError: It cannot be read. The message says what it is and what can be done.
        ImportError: A package for the format is not installed. The message says which.
    """
    kind, file = detect_format(Path(path))
    module, function = _READERS[kind]
    open_it = getattr(import_module(f".{module}", __package__), function)
    options = {"include_optimizer": include_optimizer} if kind in _WITH_OPTIMIZER else {}
    source: Source = open_it(file, **options)
    if kind not in _IN_SEVERAL_FILES and not source.has_external_data:
        source.file_nbytes = file.stat().st_size
    return source
