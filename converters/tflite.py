"""TensorFlow Lite models as a source: constant tensors, quantized ones as the integers that they are.

The FlatBuffer is read by hand (tensorflow/lite/schema/schema.fbs); operators are not looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vqformat.encode.source import SourceTensor, check_name, check_shape
from vqformat.errors import ConversionError, EncodeError
from vqformat.format.bits import unpack_nibbles
from vqformat.format.dtypes import BY_NAME
from vqformat.format.limits import MAX_NAME_NBYTES, MAX_RANK, MAX_TENSORS

from .file_region import Region
from .flatbuffer import Flat, Table
from .source import Source
from .tflite_sparse import places, read_levels

_WHAT = "a TensorFlow Lite (TFLite) model"
_FEW = 16  # elements: so few floats may be bounds or scales, and are kept exactly
_MAX_TEXT_NBYTES = 1 << 16
_LONGEST_NAME_NBYTES = MAX_NAME_NBYTES - 32  # room for what is appended to a name
_MAX_SHARED = 8  # tensors that share a buffer: else a few bytes could stand for a large model
_MAX_EXPANDED_NBYTES, _MAX_SPARSE_RATIO = 64 << 20, 1000  # of a sparse tensor made dense

# enum TensorType -> SPEC name
_DTYPES = {
    0: "f32", 1: "f16", 2: "i32", 3: "u8", 4: "i64", 6: "bool", 7: "i16", 8: "c64", 9: "i8", 10: "f64", 11: "c128",
    12: "u64", 15: "u32", 16: "u16", 17: "i4", 18: "bf16",
}  # fmt: skip
_NO_NUMBERS = {5: "text", 13: "a resource", 14: "a variant"}


def open_tflite(path: Path) -> Source:
    """Open a model; tensors are those that have data, in the order of the subgraphs.

    A quantized tensor ``w`` is followed by ``w.scale`` and ``w.zero_point``, and, where it has several scales, by
    ``w.quantized_dimension``, the axis that they belong to.

    Raises:
        ConversionError: It is damaged, or has a tensor that a ``.vqm`` cannot hold.
    """
    with Flat(path, _WHAT) as flat:
        return _Model(flat).source()


class _Model:
    """A model while it is read."""

    def __init__(self, flat: Flat) -> None:
        self._flat = flat
        self._root = flat.root()
        self._buffers = self._root.offsets(4)
        self._sources: dict[str, SourceTensor] = {}
        self._first: dict[tuple[Any, ...], str] = {}
        self._seen: dict[str, int] = {}
        self._notes: list[str] = []
        self._nbytes = 0

    def source(self) -> Source:
        for at in self._root.offsets(2):
            for place in Table(self._flat, at).offsets(0):
                self._take(Table(self._flat, place))
        if not self._sources:
            raise self._flat.error("it has no constant tensors")
        self._notes.append("left out the operators of the model: its constant tensors alone are kept")
        text = self._root.text(3)[:_MAX_TEXT_NBYTES]
        return Source("tflite", list(self._sources.values()), {"description": text} if text else {}, self._notes,
                      {"format": "tflite"})  # fmt: skip

    def _take(self, table: Table) -> None:
        """Add a tensor, if it has data."""
        index = table.scalar(2, "<I")
        if index >= len(self._buffers):
            raise self._flat.error(f"a tensor is in buffer {index} of {len(self._buffers)}")
        region = self._data(Table(self._flat, self._buffers[index]))
        if region is None:
            return
        name = table.text(3) or "tensor"
        if len(name.encode()) > _LONGEST_NAME_NBYTES:  # the converter joins the names of all operators that it fused
            name = name.rpartition(";")[2]
        kind = table.scalar(1, "<b")
        if kind in _NO_NUMBERS:
            self._notes.append(f"left out {name[:200]!r}: {_NO_NUMBERS[kind]}")
            return
        try:
            if kind not in _DTYPES:
                raise ValueError(f"it has type {kind}, which a .vqm cannot hold")
            shape = tuple(int(size) for size in table.array(0, "<i4"))
            if len(shape) > MAX_RANK or any(size < 0 for size in shape):
                raise ValueError(f"it has shape {shape[:MAX_RANK]}")
            check_shape(name, shape)
            load = self._loader(table, region, _DTYPES[kind], shape)
            name = self._put(name, _DTYPES[kind], shape, load, key=(index, kind, shape))
            self._add_quantization(table.table(4), name, shape)
        except (ValueError, EncodeError) as err:
            if isinstance(err, ConversionError):
                raise
            raise self._flat.error(f"tensor {name[:200]!r}: {err}") from err

    def _data(self, buffer: Table) -> Region | None:
        """The bytes of a buffer: inside the FlatBuffer, or, of a large model, behind it."""
        at = buffer.target(0)
        start, size = (0, 0) if at is None else self._flat.span(at)
        if not size and buffer.scalar(1, "<Q") > 1:
            start, size = buffer.scalar(1, "<Q"), buffer.scalar(2, "<Q")
            if start + size > self._flat.size:
                raise self._flat.error(f"a buffer of {size} bytes at {start} is beyond the end at {self._flat.size}")
        return Region(self._flat.path, repr(str(self._flat.path)), start, size) if size else None

    def _loader(self, table: Table, region: Region, dtype: str,
                shape: tuple[int, ...]) -> Callable[[], npt.NDArray[Any]]:  # fmt: skip
        sparsity = table.table(6)
        count = prod(shape)
        if sparsity is None:
            if region.size != BY_NAME[dtype].nbytes(count):
                raise ValueError(f"it has shape {shape} and dtype {dtype}, {BY_NAME[dtype].nbytes(count)} bytes, but"
                                 f" {region.size} are there")  # fmt: skip
            return lambda: _values(region, dtype, count).reshape(shape)
        nbytes = BY_NAME[dtype].nbytes(count)
        if nbytes > max(_MAX_EXPANDED_NBYTES, _MAX_SPARSE_RATIO * region.size):
            raise ValueError(f"it has {nbytes} bytes, of which {region.size} are stored: it is too sparse to be made"
                             " dense")  # fmt: skip
        levels = read_levels(self._flat, sparsity, shape)
        stored = region.size * 8 // BY_NAME[dtype].bits

        def load() -> npt.NDArray[Any]:
            try:
                where = places(levels, count)
                if where.size != stored:
                    raise ValueError(f"it has {stored} values for {where.size} places")
            except ValueError as err:
                raise ConversionError(f"{region.label}: a sparse tensor cannot be read: {err}") from err
            dense = np.zeros(count, BY_NAME[dtype].numpy)
            dense[where] = _values(region, dtype, where.size)
            return dense.reshape(shape)

        return load

    def _add_quantization(self, table: Table | None, name: str, shape: tuple[int, ...]) -> None:
        """Scales and zero points as tensors beside the one that they belong to."""
        if table is None:
            return
        scale, zero = table.array(2, "<f4"), table.array(3, "<i8")
        if not scale.size:
            return
        axis = table.scalar(6, "<i")
        is_per_axis = scale.size > 1
        if is_per_axis and (not 0 <= axis < len(shape) or scale.size != shape[axis]):
            raise ValueError(f"it has {scale.size} scales along axis {axis} of shape {shape}")
        if zero.size not in (1, scale.size):
            raise ValueError(f"it has {scale.size} scales and {zero.size} zero points")
        self._put(f"{name}.scale", "f32", scale.shape, lambda: scale)
        self._put(f"{name}.zero_point", "i64", zero.shape, lambda: zero)
        if is_per_axis:
            self._put(f"{name}.quantized_dimension", "i32", (), lambda: np.array(axis, "<i4"))

    def _put(self, name: str, dtype: str, shape: tuple[int, ...], load: Callable[[], npt.NDArray[Any]], *,
             key: tuple[Any, ...] | None = None) -> str:  # fmt: skip
        """Add a tensor under its name, or, where that is in use, ``name#2`` and so on."""
        unique = name
        while unique in self._sources:
            self._seen[name] = self._seen.get(name, 1) + 1
            unique = f"{name}#{self._seen[name]}"
        check_name(unique)
        target = unique if key is None else self._first.setdefault(key, unique)
        alias_of = None if target == unique else target
        source = SourceTensor(unique, dtype, shape, load, alias_of, is_exact=key is None or prod(shape) <= _FEW)
        self._nbytes += 0 if alias_of or key is None else source.nbytes
        if len(self._sources) == MAX_TENSORS or self._nbytes > max(_MAX_SHARED * self._flat.size, _MAX_EXPANDED_NBYTES):
            raise ValueError("too many tensors, or too many that share their bytes with others")
        self._sources[unique] = source
        return unique


def _values(region: Region, dtype: str, count: int) -> npt.NDArray[Any]:
    info = BY_NAME[dtype]
    data = np.empty(info.nbytes(count), np.uint8)
    try:
        region.fill(data, 0)
    except ValueError as err:
        raise ConversionError(f"{region.label} cannot be read: {err}") from err
    if info.bits == 4:
        data = unpack_nibbles(data, 2 * data.size)[:count]
        data = (data ^ np.uint8(8)) - np.uint8(8)  # ml_dtypes keeps the sign in the byte's upper half
    if dtype == "bool":
        data = (data != 0).view(np.uint8)
    return data.view(info.numpy)
