"""Tensors that lie in the bytes of a storage at an offset and with strides, as PyTorch keeps them."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vqformat.format.dtypes import BY_NAME, DTYPES
from vqformat.format.limits import MAX_RANK

from .file_region import Region

_LARGEST = (1 << 63) - 1  # size, stride or offset
_MAX_EXPANDED_NBYTES = 64 << 20  # of a tensor that repeats elements of its storage (stride 0)

# Name of a dtype in PyTorch -> SPEC name. float4_e2m1fn_x2 is absent: an element of it is two values
TORCH_DTYPES = {info.numpy_name: info.name for info in DTYPES if info.bits >= 8}


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

    @property
    def n_spanned(self) -> int:
        """Elements from the first to the last in the storage."""
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return last + 1 if self.n_elements else 0


def check_strided(offset: Any, shape: Any, stride: Any, dtype: Any, nbytes: int, **flags: bool) -> Strided:
    """A tensor that somebody describes, if it lies within a storage of ``nbytes`` bytes.

    Raises:
        ValueError: It does not, or the description is no tensor's.
    """
    info = BY_NAME.get(dtype) if isinstance(dtype, str) else None
    if info is None:
        raise ValueError(f"it has dtype {str(dtype)[:40]}, which a .vqm cannot hold")
    if not isinstance(shape, (tuple, list)) or not isinstance(stride, (tuple, list)) or len(shape) > MAX_RANK:
        raise ValueError(f"its shape or its strides are no list of at most {MAX_RANK} sizes")
    sizes = (offset, *shape, *stride)
    if len(shape) != len(stride) or not all(type(size) is int and 0 <= size <= _LARGEST for size in sizes):
        raise ValueError("its offset, shape and strides do not fit each other, or are negative")
    tensor = Strided(dtype, offset, tuple(shape), tuple(stride), **flags)
    itemsize = info.numpy.itemsize
    needed = (offset + tensor.n_spanned) * itemsize if tensor.n_elements else 0
    if needed > nbytes:
        raise ValueError(f"it has shape {tensor.shape} and needs {needed} bytes of its storage, which has {nbytes}")
    if tensor.n_elements * itemsize > max(nbytes, _MAX_EXPANDED_NBYTES):
        raise ValueError(f"it has shape {tensor.shape}, {tensor.n_elements * itemsize} bytes that repeat {nbytes}; at"
                         f" most {_MAX_EXPANDED_NBYTES} are allowed")  # fmt: skip
    return tensor


def read_strided(tensor: Strided, storage: Region) -> npt.NDArray[Any]:
    """The array of a tensor that has been checked.

    Raises:
        ValueError: The storage became shorter.
    """
    dtype = BY_NAME[tensor.dtype].numpy
    if not tensor.n_elements:
        return np.empty(tensor.shape, dtype)
    data = np.empty(tensor.n_spanned * dtype.itemsize, np.uint8)
    storage.fill(data, tensor.offset * dtype.itemsize)
    if tensor.dtype == "bool":
        data = (data != 0).view(np.uint8)  # any byte may be there
    strides = [step * dtype.itemsize for step in tensor.stride]
    array: npt.NDArray[Any] = np.ndarray(tensor.shape, dtype, data.data, strides=strides)
    array = np.conj(array) if tensor.is_conj else array
    return np.negative(array) if tensor.is_neg else array


def overlap_notes(by_storage: dict[str, list[tuple[int, int, int, str]]]) -> list[str]:
    """A note for each tensor whose bytes overlap those of another.

    Args:
        by_storage: For each storage, for each of its tensors: start, end, position and name.
    """
    found = []
    for extents in by_storage.values():
        reach, other = 0, ""
        for start, end, position, name in sorted(extents, key=lambda extent: (extent[0], extent[2])):
            if start < reach:
                found.append((position, f"{name!r} and {other!r} are views that overlap: each is stored on its own"))
            if end > reach:
                reach, other = end, name
    return [note for _, note in sorted(found)]
