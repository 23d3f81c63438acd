"""Lossless coding, and nearly lossless coding for small and sensitive tensors: biases, norms, statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ...format.chunkwriter import EncodedTensor
from ...format.dtypes import BY_NAME
from .assemble import assemble_raw

FRACTION_BITS = 8  # kept by ``encode_fine``: the relative error is at most 2^-9, the SQNR about 56 dB


def encode_exact(name: str, dtype: str, array: npt.NDArray[Any]) -> EncodedTensor:
    """Encode a tensor losslessly, with the split of SPEC section 8 that takes the fewest bytes."""
    info = BY_NAME[dtype]
    splits = (0, 1, 2) if info.arithmetic else (0, 1) if info.word_nbytes else (0,)
    if len(splits) > 1 and array.size > 1 << 18:  # compare splits on a part
        part = array.reshape(-1)[: 1 << 17]
        splits = (min(splits, key=lambda split: assemble_raw(name, dtype, part, split).stored_nbytes),)
    return min((assemble_raw(name, dtype, array, split) for split in splits), key=_cost)


def encode_raw(name: str, dtype: str, array: npt.NDArray[Any]) -> EncodedTensor:
    """Encode a tensor losslessly, as plain bytes without compression."""
    return assemble_raw(name, dtype, array, 0, compress=False)


def encode_fine(name: str, dtype: str, array: npt.NDArray[Any]) -> tuple[EncodedTensor, npt.NDArray[Any]]:
    """Round floats of 32 bits or more to ``FRACTION_BITS`` fraction bits, then encode the tensor losslessly.

    The error is relative to each value, not to the largest value, so that small variances and scales keep their
    precision.

    Returns:
        The encoded tensor, and the rounded array.
    """
    rounded = array
    flat = array.reshape(-1)
    if dtype in ("f32", "c64"):
        rounded = _round_fraction(flat.view(np.float32), np.dtype("<u4"), 23).view(array.dtype).reshape(array.shape)
    elif dtype in ("f64", "c128"):
        rounded = _round_fraction(flat.view(np.float64), np.dtype("<u8"), 52).view(array.dtype).reshape(array.shape)
    return encode_exact(name, dtype, rounded), rounded


def _round_fraction(values: npt.NDArray[Any], word: np.dtype[Any], fraction_bits: int) -> npt.NDArray[Any]:
    """Round the fractions of floats to nearest. Infinite, NaN and subnormal values stay unchanged."""
    dropped = fraction_bits - FRACTION_BITS
    words = values.view(word)
    half = word.type(1 << (dropped - 1))
    # A carry into the exponent rounds correctly. Where the result is infinite, the value stays unchanged
    rounded = ((words + half) & ~word.type((1 << dropped) - 1)).view(values.dtype)
    # Subnormals have fewer significant bits, so their relative error would be larger
    is_rounded = np.isfinite(rounded) & (np.abs(values) >= np.finfo(values.dtype).tiny)
    return np.where(is_rounded, rounded, values)


def _cost(tensor: EncodedTensor) -> int:
    return tensor.stored_nbytes + 8 * len(tensor.sections)
