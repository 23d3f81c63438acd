"""``convert`` and ``extract``: one checkpoint to one ``.vqm``, and back."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from vqformat.encode.model import encode_model
from vqformat.encode.options import Options
from vqformat.encode.outcome_folder import kept_outcomes
from vqformat.encode.recipe import as_recipe
from vqformat.encode.report import Report
from vqformat.encode.tensor_work import HERE, Workplace
from vqformat.errors import ConversionError
from vqformat.read.shards import index_of, same_model
from vqformat.sizes import Size

from .folder_layout import files_beside
from .opener import SourceOpener
from .opening import open_source
from .source import Source, growth_notes, quantized_notes


def convert(src: str | os.PathLike[str], dst: str | os.PathLike[str] | BinaryIO, *, options: Options | None = None,
            metadata: Mapping[str, Any] | None = None, include_optimizer: bool = False, overwrite: bool = False,
            max_shard_size: Size | None = None, resume: bool | None = False, **keywords: Any) -> Report:  # fmt: skip
    """Compress a checkpoint into a ``.vqm``.

    Args:
        src: Checkpoint: PyTorch (zip, legacy, TorchScript, distributed, torch.export), safetensors, Keras (``.keras``,
            ``.weights.h5``, legacy ``.h5``), HDF5, TensorFlow (SavedModel, checkpoint, TensorFlow.js, ``.tflite``),
            Flax, ONNX, GGUF, NumPy archive or array, or another ``.vqm``. The format is detected from the content. For
            a sharded model, the index or the folder.
        dst: Path, or a binary stream.
        options: Options of the encoder, in place of keywords.
        keywords: The options one by one, as for ``vqformat.save_file``.
        metadata: Added to the metadata of the checkpoint.
        include_optimizer: Whether the training state beside the weights (of the optimizer, epoch numbers) is stored,
            too. Its tensors are stored exactly, unless a pattern of the recipe matches them.
        overwrite: Whether an existing ``dst`` may be replaced.
        max_shard_size: Most bytes of a file, as for ``vqformat.save_file``.
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
    options = as_options(options, keywords)
    if not overwrite and isinstance(dst, (str, os.PathLike)) and os.path.exists(dst):
        raise FileExistsError(f"{os.fspath(dst)!r} exists; it was not replaced")  # before the work is done
    _check_other(src, dst)
    if not os.path.exists(src) and isinstance(index := index_of(src), Path):
        src = index
    with open_source(src, include_optimizer=include_optimizer) as source:
        if os.path.isdir(src) and not source.format.startswith("keras"):  # whose configuration is in vqm.source
            source.left_out += files_beside(Path(src))
            source.notes += [line for line in source.left_out if line not in source.notes]
        nbytes = sum(tensor.nbytes for tensor in source.tensors)
        opener = SourceOpener.of(src, include_optimizer=include_optimizer)
        with kept_outcomes(dst, nbytes, resume=resume) as kept:
            report = convert_source(source, dst, options=options, metadata=metadata, overwrite=overwrite,
                                    max_shard_size=max_shard_size,
                                    place=Workplace(opener=opener, outcomes=kept.path))  # fmt: skip
        report.notes[:0] = kept.notes
        return report


def as_options(options: Options | None, keywords: dict[str, Any]) -> Options:
    """Options that are given as one object or as keyword arguments.

    Raises:
        TypeError: They are given as both.
    """
    if options is None:
        return Options(**{**keywords, "recipe": as_recipe(keywords.get("recipe"))})
    if keywords:
        raise TypeError(f"options and {', '.join(keywords)} exclude each other")
    return options


def convert_source(source: Source, dst: str | os.PathLike[str] | BinaryIO, *, options: Options,
                   metadata: Mapping[str, Any] | None, overwrite: bool = False, max_shard_size: Size | None = None,
                   place: Workplace = HERE) -> Report:  # fmt: skip
    """Compress an opened checkpoint. Arguments and errors are those of ``convert``."""
    stored = {**source.stored_metadata(), **(metadata or {})}
    report = encode_model(source.tensors, dst, stored, options, overwrite=overwrite, max_shard_size=max_shard_size,
                          place=place)  # fmt: skip
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
    """Raise ConversionError if source and destination are the same file, or the same model in shards."""
    if isinstance(dst, (str, os.PathLike)) and same_model(src, dst):
        raise ConversionError(f"{os.fspath(dst)!r} is the source itself; write to another file")
