"""Lossless coding: as codes of the grid that a tensor was dequantized from, or as bytes."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy.typing as npt

from ...format.chunkwriter import EncodedTensor
from . import dequantized, fine
from .assemble import Collect

_SMALL = 1 << 16  # elements of a tensor that is coded in both ways
_PART = 1 << 17  # elements of a larger one that are tried as bytes


def encode(
    name: str, dtype: str, array: npt.NDArray[Any], *, thorough: bool = False, is_lossless: bool = False,
    collect: Collect = list,
) -> EncodedTensor:  # fmt: skip
    """Every bit kept, in the fewest bytes.

    Args:
        array: C-contiguous, of the dtype.
        thorough: See ``fine.encode_exact``.
        is_lossless: Whether all of the file is: see ``fine.encode_lossless``.
        collect: See ``assemble.assemble``.
    """
    encode_bytes = fine.encode_lossless if is_lossless else fine.encode_exact
    as_bytes = partial(encode_bytes, name, dtype, thorough=thorough, collect=collect)
    on_grid = dequantized.encode(name, dtype, array, collect=collect) if array.size else None
    if on_grid is None:
        return as_bytes(array)
    if array.size > _SMALL:
        part = as_bytes(array.reshape(-1)[:_PART], thorough=False)
        if part.stored_nbytes * array.size > on_grid.stored_nbytes * min(_PART, array.size):
            return on_grid
    return min(on_grid, as_bytes(array), key=fine.nbytes)
