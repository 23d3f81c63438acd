"""Tensors that lie in the bytes of a storage at an offset and with strides, as PyTorch keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vqformat.format.dtypes import BY_NAME, DTYPES
from vqformat.format.limits import MAX_RANK

from .file_region import Region

LARGEST = (1 << 63) - 1  # size, stride or offset
_MAX_EXPANDED_NBYTES = 64 << 20  # of a tensor that repeats elements of its storage (stride 0)

# Name of a dtype in PyTorch -> SPEC name. float4_e2m1fn_x2 is absent: an element of it is two values
TORCH_DTYPES = {info.numpy_name: info.name for info in DTYPES if info.bits >= 8}
# Name of a storage type in PyTorch, before "Storage" -> SPEC name
STORAGE_DTYPES = {
    "Bool": "bool", "Byte": "u8", "Char": "i8", "UInt16": "u16", "Short": "i16", "UInt32": "u32", "Int": "i32",
    "UInt64": "u64", "Long": "i64", "Half": "f16", "BFloat16": "bf16", "Float": "f32", "Double": "f64",
    "ComplexFloat": "c64", "ComplexDouble": "c128", "Float8_e4m3fn": "f8_e4m3fn", "Float8_e5m2": "f8_e5m2",
    "Float8_e4m3fnuz": "f8_e4m3fnuz", "Float8_e5m2fnuz": "f8_e5m2fnuz", "Float8_e8m0fnu": "f8_e8m0fnu",
}  # fmt: skip


def are_sizes(offset: Any, shape: Any, stride: Any) -> bool:
    """Whether these, from a file, can be the offset, shape and strides of a tensor."""
    if not isinstance(shape, (tuple, list)) or not isinstance(stride, (tuple, list)):
        return False
    sizes = (offset, *shape, *stride)
    return len(shape) == len(stride) and len(shape) <= MAX_RANK and all(
        type(size) is int and 0 <= size <= LARGEST for size in sizes)  # fmt: skip


def n_spanned(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Elements of the storage from the first to the last of a tensor."""
    if not prod(shape):
        return 0
    return sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) + 1


def most_nbytes(storage_nbytes: int, times: int = 1) -> int:
    """The most bytes of a tensor in a storage, some elements of which it may repeat."""
    return max(times * storage_nbytes, _MAX_EXPANDED_NBYTES)


def array_of(
    data: bytes | npt.NDArray[np.uint8], dtype: str, shape: tuple[int, ...], stride: Sequence[int], *, is_conj: bool,
    is_neg: bool,
) -> npt.NDArray[Any]:  # fmt: skip
    """The array of a tensor.

    Args:
        data: The bytes that it spans, little-endian.
        dtype: SPEC name.
        stride: In elements.
    """
    numpy_dtype = BY_NAME[dtype].numpy
    if dtype == "bool":  # any byte may be there
        data = (np.frombuffer(data, np.uint8) != 0).view(np.uint8)
    buffer = data if isinstance(data, bytes) else data.data
    array: npt.NDArray[Any] = np.ndarray(shape, numpy_dtype, buffer,
                                         strides=[step * numpy_dtype.itemsize for step in stride])  # fmt: skip
    array = np.conj(array) if is_conj else array
    return np.negative(array) if is_neg else array


class Strided(NamedTuple):
    """A tensor in a storage; sizes, strides and the offset are in elements.

    Attributes:
        dtype: SPEC name.
    """

    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    is_conj: bool = False
    is_neg: bool = False

    @property
    def n_elements(self) -> int:
        return prod(self.shape)


def brief(value: Any) -> str:
    """A value of a pickle as text, however large or deep it is."""
    if isinstance(value, (tuple, list)) and len(value) <= MAX_RANK:
        inner = ", ".join(brief(item) if isinstance(item, int) else "…" for item in value)
        return f"({inner}{',' * (len(value) == 1)})"
    is_short = isinstance(value, str) or (isinstance(value, int) and -LARGEST <= value <= LARGEST)
    return str(value) if is_short else f"a {type(value).__name__}"


def check_strided(offset: Any, shape: Any, stride: Any, dtype: Any, nbytes: int, **flags: bool) -> Strided:
    """A tensor that somebody describes, if it lies within a storage of ``nbytes`` bytes.

    Raises:
        ValueError: It does not, or the description is no tensor's.
    """
    info = BY_NAME.get(dtype) if isinstance(dtype, str) else None
    if info is None or info.bits < 8:  # PyTorch counts pairs of 4-bit values
        raise ValueError(f"it has dtype {str(dtype)[:40]}, which a .vqm cannot hold")
    if not are_sizes(offset, shape, stride):
        raise ValueError(f"its offset {brief(offset)}, shape {brief(shape)} and strides {brief(stride)} do not fit each"
                         f" other, are negative, or are of more than {MAX_RANK} axes")  # fmt: skip
    tensor = Strided(dtype, offset, tuple(shape), tuple(stride), **flags)
    itemsize = info.numpy.itemsize
    needed = (offset + n_spanned(tensor.shape, tensor.stride)) * itemsize if tensor.n_elements else 0
    if needed > nbytes:
        raise ValueError(f"it has the shape {tensor.shape} and needs {needed} bytes of its storage, which has {nbytes}")
    if tensor.n_elements * itemsize > most_nbytes(nbytes):
        raise ValueError(f"it has the shape {tensor.shape}, {tensor.n_elements * itemsize} bytes that repeat {nbytes};"
                         f" at most {most_nbytes(nbytes)} are allowed")  # fmt: skip
    return tensor


def read_strided(tensor: Strided, storage: Region) -> npt.NDArray[Any]:
    """The array of a tensor that has been checked.

    Raises:
        ValueError: The storage became shorter.
    """
    dtype = BY_NAME[tensor.dtype].numpy
    if not tensor.n_elements:
        return np.empty(tensor.shape, dtype)
    nbytes = n_spanned(tensor.shape, tensor.stride) * dtype.itemsize
    data = storage.bytes(tensor.offset * dtype.itemsize, nbytes)
    return array_of(data, tensor.dtype, tensor.shape, tensor.stride, is_conj=tensor.is_conj, is_neg=tensor.is_neg)
