"""The format for NumPy: the functions of safetensors, with the same names and argument order."""

from __future__ import annotations

import io
import warnings
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, TypedDict

import numpy.typing as npt

from .decode.workers import n_threads
from .files import Path
from .format.limits import DEFAULT_MAX_TENSOR_NBYTES
from .format.records import AliasRecord
from .read.budget import Budget
from .read.sharded_sequential import ShardedSequentialReader, sequential_reader
from .read.shards import opened_model
from .sizes import Size

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from typing_extensions import Unpack

    from .encode.options import Preset, SaveOptions
    from .encode.progress import Progress
    from .encode.recipe import Recipe
    from .encode.report import Report

Array = npt.NDArray[Any]


def save_file(
    tensors: Mapping[str, Array],
    filename: Path | BinaryIO,
    metadata: Mapping[str, Any] | None = None,
    *,
    recipe: Recipe | Mapping[str, str] | str | None = None,
    bits: float | None = None,
    ratio: float | None = None,
    size: float | str | None = None,
    sqnr: float | None = None,
    step: float | None = None,
    lossless: bool = False,
    preset: Preset = "default",
    seed: int = 0,
    progress: Progress | None = None,
    workers: int = 1,
    executor: Executor | None = None,
    overwrite: bool = True,
    max_shard_size: Size | None = None,
) -> Report:
    """Compress tensors into a ``.vqm`` file.

    Without options, each large float tensor is quantized to a uniform grid, and its codes are compressed. Small float
    tensors are rounded finely. Integers, bools and constants, such as masks and positions, are stored exactly. The
    grids are fine: nine networks on which this was measured kept 99 % of their answers, and a language model 93 % of
    its next tokens (a divergence of 0.01 nats), in files 4 to 8 times smaller. At most one of ``bits``, ``ratio``,
    ``size``, ``sqnr``, ``step`` and ``lossless`` sets the size or the quality.

    Args:
        tensors: Arrays by name, with any strides and byte order. Their order is kept. Equal views of the same memory
            become aliases. Other equal tensors are stored once, too, and loaded as arrays of their own.
        filename: Path, or a binary stream to write to. A path is written under a temporary name and renamed when it is
            complete.
        metadata: Map with string keys. Values are strings, integers, bools, bytes, None, lists and maps.
        recipe: Method for each name pattern, such as ``{"fc*": "pq:dim=4,entries=256"}``, or one method for all
            tensors.
        bits: Bits of the whole file for each weight.
        ratio: Bytes of the tensors divided by bytes of the file.
        size: Bytes of the file; or a text such as ``"1.5MB"``.
        sqnr: Signal-to-quantization-noise ratio in dB of all large tensors together; that of each is about the same.
        step: Step of the grid of the typical tensor, relative to its scale. The steps of other tensors follow from it.
            The other budgets are met by choosing this step. Without a budget it is at most 0.125, and less for a deep
            or recurrent network.
        lossless: Whether every bit is kept.
        preset: ``"fast"`` for codes of fixed width, which load at nearly the speed of memory; ``"default"``; or
            ``"small"`` for the smallest file, which takes longer to write and to load.
        seed: Seed of all random choices.
        progress: Called with the name of a tensor, the number of weights done, and the number of all weights, in each
            pass over the tensors. The name is a string that has ``phase``, what the pass does, ``number``, that of the
            pass, and ``share``, the share of the work of all passes that is done, from 0 to 1.
        workers: How many tensors are encoded at the same time. More than 1 are as many new processes: a script that
            asks for them begins by ``if __name__ == "__main__":``. The bytes of the file stay the same.
        executor: Encodes tensors in place of new processes, such as a ``ProcessPoolExecutor``, or the
            ``get_executor()`` of a client of Dask. ``workers`` says how many tensors it encodes at the same time.
        overwrite: Whether an existing file may be replaced.
        max_shard_size: Most bytes of a file, such as ``"5GB"``. A larger model becomes ``model-00001-of-00003.vqm``, …,
            and ``model.vqm.index.json``, for the name ``model.vqm``. Each of them is a whole ``.vqm`` with layers that
            are whole. A file is larger only if a single layer is. The goals are those of the model.

    Returns:
        A report on each tensor. Its ``missed`` has a line if the file is more than 1 % or 0.1 dB away from the budget.
        Its ``ruined`` has a line if the model will most likely not work any more.

    Raises:
        EncodeError: A tensor or the metadata cannot be written, or the budget cannot be met.
        FileExistsError: The file exists and ``overwrite`` is false.
    """
    from .encode.model import encode_model
    from .encode.options import Options
    from .encode.recipe import as_recipe
    from .encode.source import source_tensors

    options = Options(as_recipe(recipe), bits, ratio, size, sqnr, step, lossless, preset, seed=seed, progress=progress,
                      workers=workers, executor=executor)  # fmt: skip
    return encode_model(source_tensors(tensors), filename, dict(metadata or {}), options, overwrite=overwrite,
                        max_shard_size=max_shard_size)  # fmt: skip


def save(
    tensors: Mapping[str, Array], metadata: Mapping[str, Any] | None = None, **options: Unpack[SaveOptions]
) -> bytes:
    """The bytes that ``save_file`` would write, with the same options.

    Args:
        tensors, metadata, options: As for ``save_file``.

    Raises:
        EncodeError: As for ``save_file``.
    """
    stream = io.BytesIO()
    save_file(tensors, stream, metadata, **options)
    return stream.getvalue()


class LoadOptions(TypedDict, total=False):
    """Keyword arguments of ``load_file``, for the signatures of functions that pass them on."""

    max_tensor_bytes: Size
    max_total_bytes: Size | None
    threads: int | None
    allow_partial: bool


def load_file(
    filename: Path | BinaryIO,
    *,
    max_tensor_bytes: Size = DEFAULT_MAX_TENSOR_NBYTES,
    max_total_bytes: Size | None = None,
    threads: int | None = None,
    allow_partial: bool = False,
) -> dict[str, Array]:
    """Load all tensors of a file, in file order.

    An alias is the same array object as its target. Tensors that are equal and were not tied are arrays of their own,
    though they are stored once.

    Args:
        filename: Path, or a binary stream, which need not support ``seek``. For a model in several files the path of
            their index, or that of the folder, or ``model.vqm`` though only ``model.vqm.index.json`` exists.
        max_tensor_bytes: Most bytes of one decoded tensor; a number, or a text such as ``"1.5MB"``.
        max_total_bytes: Most bytes that are held together: decoded tensors, codebooks and other tables. None for the
            memory that is available; then tables may have 256 MiB, or as many bytes as the tensor that is decoded.
        threads: Threads that decode; None for the number of processors, but at most 8. It does not change the result.
        allow_partial: Accept a truncated file, as after an interrupted download: return its complete tensors, with a
            warning.

    Returns:
        Arrays by name, of the shapes and dtypes in the file, in C order, freshly allocated. bfloat16, float8 and 4-bit
        dtypes are those of ``ml_dtypes``.

    Raises:
        VqmError: The file is refused.
        OSError: The file cannot be read.
    """
    budget = Budget.of(max_tensor_bytes, max_total_bytes)
    with opened_model(filename) as source:
        tensors: dict[str, Array] = {}
        reader = sequential_reader(source, budget, in_batches=True, allow_partial=allow_partial,
                                   threads=n_threads(threads))  # fmt: skip
        for info, arrays in reader.layers():
            for record in info.records:
                if isinstance(record, AliasRecord):
                    tensors[record.name] = tensors[record.target]
                else:
                    tensors[record.name] = arrays[record.name]
        for name, holder in reader.copies.holders.items():  # CPY-002; now, as arrays are filled only at the end
            if name in tensors and name == holder:
                budget.take_copy(name, tensors[name].nbytes)
                tensors[name] = tensors[name].copy()
            elif name in tensors:
                tensors[name] = tensors[holder]
        if reader.cut_at is not None:
            warnings.warn(f"the file ends early, at byte {reader.cut_at}: {len(tensors)} tensors of it are whole",
                          stacklevel=2)  # fmt: skip
        if isinstance(reader, ShardedSequentialReader):  # aliases come with their targets, out of order
            return {name: tensors[name] for name in reader.names if name in tensors}
        return tensors


def load(data: bytes | bytearray | memoryview, **options: Unpack[LoadOptions]) -> dict[str, Array]:
    """Load all tensors from the bytes of a file.

    Args:
        data: The file.
        options: As for ``load_file``.

    Returns:
        Tensors by name, as ``load_file`` returns them.

    Raises:
        VqmError: The file is refused.
    """
    return load_file(io.BytesIO(data), **options)


def verify(
    filename: Path | BinaryIO,
    *,
    max_tensor_bytes: Size = DEFAULT_MAX_TENSOR_NBYTES,
    max_total_bytes: Size | None = None,
) -> str:
    """Read and decode a whole file and check all of it, including the SHA-256.

    Args:
        filename: As for ``load_file``.
        max_tensor_bytes: Most bytes of one decoded tensor.
        max_total_bytes: Most bytes that are held together: the tensors of a layer, codebooks and other tables; None as
            for ``load_file``.

    Returns:
        The SHA-256 that the file states, in hexadecimal; for a model in several files that of their index.

    Raises:
        VqmError: The file is refused.
    """
    with opened_model(filename) as source:
        reader = sequential_reader(source, Budget.of(max_tensor_bytes, max_total_bytes), check_digest=True,
                                   keep_total=False, in_batches=True)  # fmt: skip
        deque(reader.layers(), maxlen=0)  # reads all layers and keeps none
        return reader.digest.hex()
