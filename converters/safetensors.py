"""Reading safetensors files, single or sharded. The safetensors package checks them, and NumPy reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy.typing as npt

from vqformat.encode.source import SourceTensor
from vqformat.errors import ConversionError, missing_package
from vqformat.format.bits import unpack_nibbles
from vqformat.format.dtypes import BY_NAME

from .export.safetensors import NAMES
from .file_region import file_bytes
from .sharding import check_shard, read_shards
from .source import Source, take_metadata

try:
    from safetensors import SafetensorError, safe_open
except ImportError as err:
    raise missing_package("safetensors files need", "safetensors", err) from err

DTYPES = {theirs: ours for ours, theirs in NAMES.items()}  # without F6_E2M3 and F6_E3M2, which SPEC does not have


def open_safetensors(path: Path) -> Source:
    """Open one safetensors file.

    Raises:
        ConversionError: It is damaged, or a ``.vqm`` cannot hold a dtype.
    """
    notes: list[str] = []
    tensors, metadata = _read(path)
    return Source("safetensors", tensors, take_metadata(metadata, notes), notes, {"format": "safetensors"})


def open_sharded(index: Path) -> Source:
    """Open a sharded model by its ``*.safetensors.index.json``. Shards are in the order of their names.

    Raises:
        ConversionError: A shard is missing or damaged, or lacks a tensor of the index.
    """
    notes: list[str] = []
    tensors: list[SourceTensor] = []
    metadata: dict[str, Any] = {}
    for shard, placed in read_shards(index).items():
        found, more = _read(index.parent / shard)
        metadata = {**more, **metadata}
        check_shard(index, shard, placed, [tensor.name for tensor in found], notes)
        tensors.extend(tensor for tensor in found if tensor.name in placed)
    left_out = list(notes)
    return Source("safetensors", tensors, take_metadata(metadata, notes), notes, {"format": "safetensors"},
                  left_out=left_out)  # fmt: skip


def _read(path: Path) -> tuple[list[SourceTensor], dict[str, Any]]:
    """The tensors in the order of their data, and ``__metadata__``."""
    try:
        with safe_open(path, framework="np") as file:
            names = set(file.keys())
    except SafetensorError as err:
        raise ConversionError(f"{str(path)!r} is a safetensors file that is damaged or cut short, or no checkpoint at"
                              f" all ({err}); fetch or save it again") from err  # fmt: skip
    with open(path, "rb") as stream:  # the package has checked the header
        size = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(size))
    metadata = header.pop("__metadata__", None) or {}
    if set(header) != names:
        raise ConversionError(f"{str(path)!r} is a safetensors file whose header is ambiguous")
    tensors = []
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype = DTYPES.get(entry["dtype"])
        if dtype is None:
            raise ConversionError(f"{str(path)!r}: tensor {name!r} has dtype {entry['dtype']}; a .vqm does not have it")
        shape = tuple(entry["shape"])
        start, end = entry["data_offsets"]
        tensors.append(SourceTensor(name, dtype, shape, _loader(path, dtype, shape, 8 + size + start, end - start)))
    return tensors, metadata


def _loader(path: Path, dtype: str, shape: tuple[int, ...], offset: int, nbytes: int) -> Callable[[], npt.NDArray[Any]]:
    def load() -> npt.NDArray[Any]:
        data = file_bytes(path, offset, nbytes)
        info = BY_NAME[dtype]
        if info.bits == 4:
            return unpack_nibbles(data, 2 * nbytes).view(info.numpy).reshape(shape)
        if dtype == "bool":
            truth: npt.NDArray[Any] = data != 0  # safetensors accepts any byte: every byte other than 0 is true
            return truth.reshape(shape)
        return data.view(info.numpy).reshape(shape)

    return load
