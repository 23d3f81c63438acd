"""The format for PyTorch: the functions of ``safetensors.torch``, with the same names and argument order."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy.typing as npt

from ..errors import EncodeError, missing_package

try:
    import torch
    from torch import nn
except ImportError as err:
    raise missing_package("vqformat.torch needs", "torch", err) from err

from .. import numpy as front
from ..encode.calibration import Calibration as Calibration
from ..encode.writer import writer as writer_of_arrays
from ..files import Path
from ..read.torch_arrays import dtype_name, identity, logical_shape
from ..read.torch_arrays import from_numpy as from_numpy
from ..read.torch_arrays import memory_of as memory_of
from ..read.torch_arrays import to_numpy as to_numpy
from ..sizes import Size
from .calibration import calibrate as calibrate
from .checkpoint import split_state
from .correction import Corrector
from .loading import Device
from .loading import load_model as load_model
from .streamed_model import stream_model as stream_model

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..encode.options import FileOptions, SaveOptions
    from ..encode.report import Report
    from ..encode.source import SourceTensor
    from ..numpy import LoadOptions


def save_file(
    tensors: Mapping[str, torch.Tensor],
    filename: Path | BinaryIO,
    metadata: Mapping[str, Any] | None = None,
    **options: Unpack[FileOptions],
) -> Report:
    """Compress tensors into a ``.vqm`` file.

    Args:
        tensors: Tensors by name, on any device and with any strides. Their order is kept. Tied tensors become aliases.
            Other equal tensors are stored once, too, and loaded as tensors of their own.
        filename, metadata, options: As for ``vqformat.save_file``.

    Returns:
        A report on each tensor. Its ``notes`` name tensors that overlap in memory without being equal.

    Raises:
        EncodeError: A tensor or the metadata cannot be written, or the budget cannot be met.
        FileExistsError: The file exists and ``overwrite`` is false.
    """
    notes: list[str] = []
    return _save(source_tensors(tensors, notes), notes, filename, metadata, **options)


def _save(sources: list[SourceTensor], notes: list[str], filename: Path | BinaryIO,
          metadata: Mapping[str, Any] | None = None, *, overwrite: bool = True, max_shard_size: Size | None = None,
          **options: Any) -> Report:  # fmt: skip
    from ..encode.model import encode_model
    from ..encode.options import Options
    from ..encode.recipe import as_recipe

    options["recipe"] = as_recipe(options.get("recipe"))
    report = encode_model(sources, filename, dict(metadata or {}), Options(**options), overwrite=overwrite,
                          max_shard_size=max_shard_size)  # fmt: skip
    report.notes.extend(notes)
    return report


def save(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any] | None = None, **options: Unpack[SaveOptions]
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


def load_file(
    filename: Path | BinaryIO, device: Device = "cpu", **options: Unpack[LoadOptions]
) -> dict[str, torch.Tensor]:
    """Load all tensors of a file, in file order. An alias is the same object as its target, a copy is not.

    Args:
        filename: Path, or a binary stream, which need not support ``seek``.
        device: Device of the tensors.
        options: ``max_tensor_bytes``, ``threads`` and so on, as for ``vqformat.load_file``.

    Returns:
        Contiguous tensors by name, of the shapes and dtypes in the file, freshly allocated.

    Raises:
        VqmError: The file is refused.
        OSError: The file cannot be read.
    """
    arrays = front.load_file(filename, **options)
    first: dict[int, str] = {}
    targets = {name: first.setdefault(id(array), name) for name, array in arrays.items()}
    tensors: dict[str, torch.Tensor] = {}
    for name, target in targets.items():
        array = arrays.pop(name)
        tensors[name] = from_numpy(array).to(device) if target == name else tensors[target]
    return tensors


def load(
    data: bytes | bytearray | memoryview, device: Device = "cpu", **options: Unpack[LoadOptions]
) -> dict[str, torch.Tensor]:
    """Load all tensors from the bytes of a file.

    Args:
        data: The file.
        device, options: As for ``load_file``.

    Returns:
        Tensors by name, as ``load_file`` returns them.

    Raises:
        VqmError: The file is refused.
    """
    return load_file(io.BytesIO(data), device, **options)


def save_model(model: torch.nn.Module, filename: Path | BinaryIO, metadata: Mapping[str, Any] | None = None, *,
               calibration: Calibration | None = None, **options: Unpack[FileOptions]) -> Report:  # fmt: skip
    """Compress the state dict of a model into a ``.vqm`` file. Tied weights are stored once and stay tied.

    Versions of modules and extra states (``get_extra_state``) of plain values and tensors are kept, for ``load_model``.

    Args:
        model: The model. It stays as it is.
        filename: Path, or a binary stream to write to.
        calibration: The result of ``calibrate``. With it, the encoder compensates errors of weights by other weights,
            gives more bits to tensors to whose errors the outputs are sensitive, and corrects biases and
            normalizations. The preset is then ``small``.
        metadata, options: As for ``vqformat.save_file``.

    Returns:
        A report on each tensor. Its ``notes`` name extra states that were left out.

    Raises:
        EncodeError: The state dict has a tensor that cannot be written.
    """
    calibrated: dict[str, Any] = {}
    if calibration is not None and not options.get("lossless"):
        calibrated = {"preset": "small", "calibration": calibration, "correct": Corrector(model, calibration)}
    tables = [f"{name}.weight".lstrip(".") for name, module in model.named_modules()
              if isinstance(module, (nn.Embedding, nn.EmbeddingBag))]  # fmt: skip
    notes: list[str] = []
    tensors, inner, origin = split_state(model.state_dict(), notes)
    sources = [replace(source, is_exact=source.name in inner) for source in source_tensors(tensors, notes, tables)]
    whole = {**({"vqm.source": origin} if origin else {}), **(metadata or {})}
    return _save(sources, notes, filename, whole, **(calibrated | options))  # type: ignore[arg-type]


class writer(writer_of_arrays):
    """Writes PyTorch tensors to a ``.vqm`` layer by layer, as ``vqformat.writer`` does with arrays."""

    def _source_tensors(self, tensors: Mapping[str, torch.Tensor], notes: list[str]) -> list[SourceTensor]:
        return source_tensors(tensors, notes)


def source_tensors(
    tensors: Mapping[str, torch.Tensor], notes: list[str], tables: Iterable[str] = ()
) -> list[SourceTensor]:
    """Describe tensors for the encoder. Tied tensors become aliases (SPEC 7, "Alias").

    Args:
        tensors: Tensors by name, as ``state_dict()`` gives them.
        notes: A line is appended for each tensor that overlaps another one in memory without being equal to it.
        tables: Names of the tensors whose rows are looked up one by one, such as embeddings.

    Raises:
        EncodeError: A name is not a string, or a value is not a tensor that a ``.vqm`` can hold.
    """
    from ..encode.source import SourceTensor, overlap_notes

    if not isinstance(tensors, Mapping):
        raise EncodeError(f"tensors is a {type(tensors).__name__}, not a mapping from names to tensors, as state_dict()"
                          " gives")  # fmt: skip
    looked_up = {identity(tensors[name]) for name in tables if name in tensors}
    sources = []
    seen: dict[tuple[Any, ...], str] = {}
    by_storage: dict[int, list[tuple[int, int, int, str]]] = {}
    for position, (name, tensor) in enumerate(tensors.items()):
        if not isinstance(name, str):
            raise EncodeError(f"the name {name!r} is a {type(name).__name__}, not a string")
        if not isinstance(tensor, torch.Tensor):
            raise EncodeError(f"{name!r} is a {type(tensor).__name__}, not a tensor; a .vqm holds tensors only")
        dtype = dtype_name(tensor, name)
        target = None
        if tensor.numel():
            target = seen.setdefault(identity(tensor), name)
            if target == name:
                start, end = _extent(tensor)
                by_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append((start, end, position, name))
        sources.append(SourceTensor(name, dtype, logical_shape(tensor), _loader(tensor, name),
                                    None if target == name else target,
                                    is_looked_up=identity(tensor) in looked_up))  # fmt: skip
    notes.extend(overlap_notes(by_storage))
    return sources


def _loader(tensor: torch.Tensor, name: str) -> Callable[[], npt.NDArray[Any]]:
    return lambda: to_numpy(tensor, name)


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """Addresses of the first byte of a tensor and of the byte after its last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
