"""Lossless coding: as codes of the grid that a tensor was dequantized from, or as bytes."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from ...format.chunkwriter import EncodedTensor
from ...format.metadata import pack
from . import dequantized, fine
from .assemble import Collect

_SMALL = 1 << 16  # elements of a tensor that is coded in both ways
_PART = 1 << 17  # elements of a larger one that are tried as bytes


def encode(name: str, dtype: str, array: npt.NDArray[Any], *, thorough: bool = False,
           collect: Collect = list) -> EncodedTensor:  # fmt: skip
    """Every bit kept, in the fewest bytes.

    Args:
        array: C-contiguous, of the dtype.
        thorough: See ``fine.encode_exact``.
        collect: See ``assemble.assemble``.
    """
    on_grid = dequantized.encode(name, dtype, array, collect=collect) if array.size else None
    if on_grid is None:
        return fine.encode_exact(name, dtype, array, thorough=thorough, collect=collect)
    if array.size > _SMALL:
        part = fine.encode_exact(name, dtype, array.reshape(-1)[:_PART])
        if part.stored_nbytes * array.size > on_grid.stored_nbytes * min(_PART, array.size):
            return on_grid
    return min(on_grid, fine.encode_exact(name, dtype, array, thorough=thorough, collect=collect), key=_nbytes)


def _nbytes(tensor: EncodedTensor) -> int:
    """Bytes of the sections, their entries in the table and the record, which count where tensors are small."""
    return fine.cost(tensor) + len(pack(tensor.record.to_metadata()))
