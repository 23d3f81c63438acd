"""The values of ONNX initializers: inside the model, or in files beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto

from vqformat.encode.source import check_shape
from vqformat.errors import ConversionError
from vqformat.format.bits import unpack_nibbles
from vqformat.format.dtypes import BY_NAME

from .file_region import file_bytes
from .model_folder import inside, open_regular
from .onnx_cutting import Place

MAX_GRAPH_NBYTES = 15 << 20  # leaves room for other metadata in META, which has at most 16 MiB

# TensorProto.DataType -> dtype name in SPEC, and the field of values that are not in raw_data
DTYPES = {
    1: ("f32", "float_data"), 2: ("u8", "int32_data"), 3: ("i8", "int32_data"), 4: ("u16", "int32_data"),
    5: ("i16", "int32_data"), 6: ("i32", "int32_data"), 7: ("i64", "int64_data"), 9: ("bool", "int32_data"),
    10: ("f16", "int32_data"), 11: ("f64", "double_data"), 12: ("u32", "uint64_data"), 13: ("u64", "uint64_data"),
    14: ("c64", "float_data"), 15: ("c128", "double_data"), 16: ("bf16", "int32_data"),
    17: ("f8_e4m3fn", "int32_data"), 18: ("f8_e4m3fnuz", "int32_data"), 19: ("f8_e5m2", "int32_data"),
    20: ("f8_e5m2fnuz", "int32_data"), 21: ("u4", "int32_data"), 22: ("i4", "int32_data"),
    23: ("f4_e2m1fn", "int32_data"), 24: ("f8_e8m0fnu", "int32_data"),
}  # fmt: skip
_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_WORDS = {"float_data": "<f4", "double_data": "<f8", "int32_data": "<i4", "int64_data": "<i8", "uint64_data": "<u8"}


@dataclass(frozen=True)
class Initializer:
    """An initializer, or the value of a Constant node, that a ``.vqm`` can hold.

    Attributes:
        number: Its number among the initializers of the main graph; None if it is none of these.
    """

    name: str
    proto: TensorProto
    dtype: str
    shape: tuple[int, ...]
    is_constant: bool
    number: int | None

    @property
    def count(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return BY_NAME[self.dtype].nbytes(self.count)

    def strip(self) -> None:
        """Remove the values from the proto; for external data also the reference to the file."""
        remove_values(self.proto, has_elements=self.count > 0)

    def put_outside(self, location: str, offset: int, length: int) -> None:
        """Say in the proto that the values are in a file beside the model."""
        self.proto.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", length)):
            self.proto.external_data.add(key=key, value=str(value))


def remove_values(proto: TensorProto, *, has_elements: bool = True) -> None:
    """Remove the values; for external data also the reference to the file."""
    for field in _FIELDS:
        proto.ClearField(field)
    if has_elements:  # without elements raw_data may be set or not, and stays so
        proto.ClearField("raw_data")
    if proto.data_location == TensorProto.EXTERNAL:
        proto.ClearField("data_location")
        proto.ClearField("external_data")


def loader(path: Path, each: Initializer, place: Place | None = None) -> Callable[[], npt.NDArray[Any]]:
    """A function that loads the values of an initializer.

    Args:
        path: The model.
        place: Where they are in the model, if they have been cut out of what was parsed.

    Raises:
        ConversionError: The values are not there, or not as many as the shape needs.
    """
    where = f"{str(path)!r}: tensor {each.name!r}"
    if any(size < 0 for size in each.shape) or each.proto.HasField("segment"):
        raise ConversionError(f"{where} has shape {each.shape} or is a part of a tensor, which cannot be read")
    check_shape(each.name, each.shape)
    dtype, shape, nbytes = each.dtype, each.shape, each.nbytes
    if each.proto.data_location == TensorProto.EXTERNAL:
        file, offset, length = _outside(path, each.proto, where, nbytes)
        if length != nbytes:
            raise ConversionError(f"{where} of shape {shape} and dtype {dtype} needs {nbytes} bytes, but has {length}"
                                  " outside the model")  # fmt: skip
    elif place is None:
        kept = _inside(each, where)
        return lambda: _array(np.frombuffer(kept, np.uint8), dtype, shape)
    else:
        file, (offset, length) = path, place
        if any(len(getattr(each.proto, field)) for field in _FIELDS):
            raise ConversionError(f"{where} has its data twice, or in the wrong field")
        _check_nbytes(each, length, where)

    return lambda: _array(file_bytes(file, offset, nbytes), dtype, shape)


def _entries(proto: TensorProto) -> dict[str, str]:
    """Where external data is; a value that is no text becomes empty."""
    return {entry.key: entry.value if isinstance(entry.value, str) else "" for entry in proto.external_data}


def _outside(path: Path, proto: TensorProto, where: str, nbytes: int) -> tuple[Path, int, int]:
    """File, offset and length of external data. For safety, the file must be in the folder of the model or below it.

    Args:
        nbytes: The length if the model does not tell it.
    """
    entries = _entries(proto)
    location = entries.get("location", "")
    file = inside(path, location, f"{where} has its data in")
    try:
        with open_regular(file) as stream:
            size = stream.seek(0, 2)
    except (FileNotFoundError, NotADirectoryError):
        raise ConversionError(f"{where} has its data in {location!r}, which is not beside it") from None
    except ConversionError as err:
        raise ConversionError(f"{where} has its data in another file, and {err}") from err
    numbers = [entries.get("offset", "0"), entries.get("length", str(nbytes))]
    if not all(number.isascii() and number.isdecimal() and len(number) < 20 for number in numbers):
        raise ConversionError(f"{where} has offset and length {numbers} in {location!r}")
    offset, length = map(int, numbers)
    if offset + length > size:
        raise ConversionError(f"{where} has its data in {length} bytes at {offset} of {location!r}, which has {size}")
    return file, offset, length


def embed(path: Path, model: ModelProto, protos: list[TensorProto]) -> None:
    """Put the external data of tensors that stay in the graph into it, unless they are too large together.

    A tensor without a length is left as it is: the size of its dtype may be unknown.
    """
    places = []
    for proto in protos:
        if proto.data_location == TensorProto.EXTERNAL and "length" in _entries(proto):
            where = f"{str(path)!r}: tensor {proto.name!r}"
            places.append((proto, *_outside(path, proto, where, 0)))
    if model.ByteSize() + sum(length for *_, length in places) > MAX_GRAPH_NBYTES:
        return
    for proto, file, offset, length in places:
        with open_regular(file) as stream:
            stream.seek(offset)
            data = stream.read(length)
        if len(data) < length:
            raise ConversionError(f"{str(file)!r} became shorter while it was read")
        remove_values(proto)
        proto.raw_data = data


def _inside(each: Initializer, where: str) -> bytes:
    """The values inside a model, in the form of raw_data. Sizes are checked before memory is allocated."""
    field = DTYPES[each.proto.data_type][1]
    others = [other for other in _FIELDS if other != field and len(getattr(each.proto, other))]
    values = getattr(each.proto, field)
    raw: bytes = each.proto.raw_data
    if others or (raw and len(values)):
        raise ConversionError(f"{where} has its data twice, or in the wrong field")
    if not len(values):
        _check_nbytes(each, len(raw), where)
        return raw
    info = BY_NAME[each.dtype]
    expected = (each.count + 1) // 2 if info.bits == 4 else each.count * (1 + info.is_complex)
    if len(values) != expected:
        raise ConversionError(f"{where} of shape {each.shape} and dtype {each.dtype} needs {expected} values, but"
                              f" {len(values)} are there")  # fmt: skip
    words = np.dtype(_WORDS[field])
    if words.kind == "f":  # serialized, because conversion to Python floats changes NaN payloads
        packed = TensorProto()
        getattr(packed, field).MergeFrom(values)
        message: bytes = packed.SerializeToString()
        return message[-expected * words.itemsize :]
    array: npt.NDArray[Any] = np.fromiter(values, words, expected)
    array = array != 0 if each.dtype == "bool" else array.astype(f"<u{max(info.bits // 8, 1)}")
    return array.tobytes()


def _check_nbytes(each: Initializer, nbytes: int, where: str) -> None:
    if nbytes != each.nbytes:
        raise ConversionError(f"{where} of shape {each.shape} and dtype {each.dtype} needs {each.nbytes} bytes, but"
                              f" {nbytes} are there")  # fmt: skip


def _array(data: npt.NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    info = BY_NAME[dtype]
    if dtype == "bool":
        data = (data != 0).view(np.uint8)
    if info.bits == 4:
        data = unpack_nibbles(data, 2 * data.size)[: prod(shape)]
        if dtype == "i4":  # ml_dtypes extends the sign into the upper half of the byte
            data = (data ^ np.uint8(8)) - np.uint8(8)
    return data.view(info.numpy).reshape(shape)
