"""Tensors on their way into the encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dtypes import BY_NAME
from ..errors import EncodeError
from ..limits import MAX_NAME_NBYTES
from .orient import reals

Array = npt.NDArray[Any]
_LARGEST = float(np.finfo(np.float32).max) / 16  # room for sums of stages and for products with scales


@dataclass(frozen=True)
class SourceTensor:
    """A tensor to be encoded, loaded when its turn comes.

    Attributes:
        dtype: Name in SPEC 7.1.
        load: Its array, of any strides and byte order; 4-bit elements take a byte each.
        alias_of: Name of an earlier tensor that it shares everything with.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], Array]
    alias_of: str | None = None

    @property
    def nbytes(self) -> int:
        return BY_NAME[self.dtype].nbytes(prod(self.shape))


def check_name(name: str) -> None:
    """Raise EncodeError unless a tensor may have this name (TEN-001)."""
    try:
        nbytes = len(name.encode())
    except UnicodeEncodeError as err:
        raise EncodeError(f"the name {name!r} is no Unicode text: {err.reason}") from err
    if not nbytes or "\0" in name:
        raise EncodeError(f"the name {name!r} is empty or has a character U+0000")
    if nbytes > MAX_NAME_NBYTES:
        raise EncodeError(f"the name {name[:40]!r}… has {nbytes} bytes; at most {MAX_NAME_NBYTES} are allowed")


def native(tensor: SourceTensor) -> Array:
    """A tensor's array: C order, little-endian.

    Raises:
        EncodeError: It is not what the source announced.
    """
    array = np.asarray(tensor.load())
    if array.shape != tensor.shape:
        raise EncodeError(f"tensor {tensor.name!r} was announced with shape {tensor.shape} and has {array.shape}")
    expected = BY_NAME[tensor.dtype].numpy
    if array.dtype.name != expected.name:
        raise EncodeError(f"tensor {tensor.name!r} was announced as {expected} and is {array.dtype}")
    return np.ascontiguousarray(array, dtype=expected).reshape(tensor.shape)  # ascontiguousarray makes 0-d 1-d


def fits_float32(array: Array) -> bool:
    """Whether all values are finite in float32 (SPEC 7: others can only be stored raw)."""
    with np.errstate(all="ignore"):  # NaN and what overflows are what is asked for
        values = reals(array)
        low, high = float(values.min(initial=0)), float(values.max(initial=0))
    return low > -_LARGEST and high < _LARGEST  # false for NaN
