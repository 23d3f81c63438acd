"""The format for NumPy: the verbs of safetensors, with the same names and argument order."""

from __future__ import annotations

import io
import warnings
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, TypedDict

import numpy.typing as npt

from .decode.workers import n_threads
from .files import Path, opened
from .format.limits import DEFAULT_MAX_TENSOR_NBYTES
from .format.records import AliasRecord
from .read.budget import Budget
from .read.sequential import SequentialReader

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .encode.options import Preset, Progress, SaveOptions
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
    size: float | None = None,
    sqnr: float | None = None,
    step: float | None = None,
    lossless: bool = False,
    preset: Preset = "default",
    seed: int = 0,
    progress: Progress | None = None,
    overwrite: bool = True,
) -> Report:
    """Compress tensors into a ``.vqm`` file.

    Without options every large float tensor is put on a grid and its codes compressed; small ones are rounded finely;
    integers, bools and constants such as masks and positions are kept. The grids are so fine that nine networks on
    which this was measured kept 99 % of their answers, and a language model 93 % of its next tokens (a divergence of
    0.01 nats), at 4 to 8 times smaller. At most one of ``bits``, ``ratio``, ``size``, ``sqnr``, ``step`` and
    ``lossless`` says how small.

    Args:
        tensors: Arrays by name, of any strides and byte order; their order is kept. Equal views of one memory become
            aliases.
        filename: Path, or a binary stream to write to. The bytes go to a temporary file that is renamed when complete.
        metadata: Map with string keys; values are strings, integers, bools, bytes, None, lists and maps.
        recipe: Method for each name pattern, such as ``{"fc*": "pq:dim=4,entries=256"}``, or one method for all.
        bits: Bits a weight, everything counted.
        ratio: Bytes of the tensors over bytes of the file.
        size: Bytes of the file.
        sqnr: Signal-to-quantization-noise ratio in dB, of all large tensors together and about that of each.
        step: Of the grid of the typical tensor, relative to its scale; those of others follow from it. It is what the
            budgets amount to, and without one at most 0.125, less for a deep or recurrent network.
        lossless: Keep every bit.
        preset: ``"fast"`` for codes of fixed width, which open at nearly the speed of memory, ``"default"``, or
            ``"small"`` for the smallest file, which takes longer to write and to open.
        seed: Of everything random.
        progress: Called with a tensor's name, weights done, weights in all.
        overwrite: Whether a file of that name may be replaced.

    Returns:
        What became of each tensor; its ``missed`` says so if the file is more than 1 % or 0.1 dB from the budget,
        its ``ruined`` if the model will most likely not work any more.

    Raises:
        EncodeError: Something cannot be written, or the budget cannot be met.
        FileExistsError: The file exists and ``overwrite`` is false.
    """
    from .encode.model import encode_model
    from .encode.options import Options
    from .encode.recipe import as_recipe
    from .encode.source import source_tensors

    options = Options(as_recipe(recipe), bits, ratio, size, sqnr, step, lossless, preset, seed=seed, progress=progress)
    return encode_model(source_tensors(tensors), filename, dict(metadata or {}), options, overwrite=overwrite)


def save(
    tensors: Mapping[str, Array], metadata: Mapping[str, Any] | None = None, **options: Unpack[SaveOptions]
) -> bytes:
    """The bytes that ``save_file`` would write; the same options."""
    stream = io.BytesIO()
    save_file(tensors, stream, metadata, **options)
    return stream.getvalue()


class LoadOptions(TypedDict, total=False):
    """Keywords of ``load_file``, for signatures that hand them on."""

    max_tensor_bytes: int
    max_total_bytes: int | None
    threads: int | None
    allow_partial: bool


def load_file(
    filename: Path | BinaryIO,
    *,
    max_tensor_bytes: int = DEFAULT_MAX_TENSOR_NBYTES,
    max_total_bytes: int | None = None,
    threads: int | None = None,
    allow_partial: bool = False,
) -> dict[str, Array]:
    """All tensors of a file, in their order; an alias is the same array as its target.

    Args:
        filename: Path, or a binary stream, which need not seek.
        max_tensor_bytes, max_total_bytes: Bounds on what is decoded; the latter is by default what memory is
            available.
        threads: How many decode; by default as many as there are processors, 8 at most. The result is the same.
        allow_partial: Of a file that ends early, as after an interrupted download, give the tensors that are there
            whole, with a warning.

    Raises:
        VqmError: The file is refused.
        OSError: It cannot be read.
    """
    budget = Budget(max_tensor_bytes, max_total_bytes)
    with opened(filename) as stream:
        tensors: dict[str, Array] = {}
        reader = SequentialReader(stream, budget, in_batches=True, allow_partial=allow_partial,
                                  threads=n_threads(threads))  # fmt: skip
        for info, arrays in reader.layers():
            for record in info.records:
                if isinstance(record, AliasRecord):
                    tensors[record.name] = tensors[record.target]
                else:
                    tensors[record.name] = arrays[record.name]
        if reader.cut_at is not None:
            warnings.warn(f"the file ends early, at byte {reader.cut_at}: {len(tensors)} tensors of it are whole",
                          stacklevel=2)  # fmt: skip
        return tensors


def load(data: bytes | bytearray | memoryview, **options: Unpack[LoadOptions]) -> dict[str, Array]:
    """All tensors of a file in memory; options as for ``load_file``."""
    return load_file(io.BytesIO(data), **options)


def verify(filename: Path | BinaryIO) -> str:
    """Read all of a file, decode it and check everything, the SHA-256 included.

    Returns:
        The file's digest, in hexadecimal.

    Raises:
        VqmError: The file is refused.
    """
    with opened(filename) as stream:
        reader = SequentialReader(stream, check_digest=True, keep_total=False, in_batches=True)
        deque(reader.layers(), maxlen=0)  # none is kept for long
        return reader.digest.hex()
