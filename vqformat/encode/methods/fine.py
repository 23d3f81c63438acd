"""Lossless coding, and nearly lossless coding for small and sensitive tensors: biases, norms, statistics."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ...decode import raw
from ...format.chunkwriter import EncodedTensor
from ...format.dtypes import BY_NAME, DType
from ...format.metadata import pack
from ...format.sections import TABLE_ENTRY_NBYTES
from . import float_codes, packing
from .assemble import Collect, assemble_raw

_TRIED = 1 << 12  # elements on which splits are compared
_RUN = 1 << 6  # of elements of a sample that is taken from all over a tensor
_LEAST_ZEROS = 1 / 256  # of a sample, so that storing them apart is considered
_MAY_BE_LESS = 1.04  # sizes of a sample, one over the other, up to which all of a tensor is encoded in both ways
_TRIED_THOROUGHLY = 1 << 18  # a larger tensor is compared on half as many elements
FRACTION_BITS = 8  # kept by ``encode_fine``: the relative error is at most 2^-9, the SQNR about 56 dB


def encode_exact(
    name: str, dtype: str, array: npt.NDArray[Any], *, thorough: bool = False, is_quick: bool = False,
    collect: Collect = list,
) -> EncodedTensor:  # fmt: skip
    """Encode a tensor losslessly, with the split of SPEC section 8 that takes the fewest bytes.

    Args:
        thorough: Whether matches are searched in all planes but noise: 0.2 to 0.4 % smaller, 20 times as slow.
        is_quick: See ``planes.PlaneMaker``.
        collect: See ``assemble.assemble_raw``.
    """
    info = BY_NAME[dtype]
    splits = (0, 1, 2) if info.arithmetic else (0, 1) if info.word_nbytes else (0,)
    if thorough and array.size > _TRIED_THOROUGHLY:
        part = array.reshape(-1)[: _TRIED_THOROUGHLY // 2]
        splits = (min(splits, key=lambda split: assemble_raw(name, dtype, part, split, thorough=True).stored_nbytes),)
    elif not thorough and array.size > _TRIED:
        start = (array.size - _TRIED) // 2
        part = array.reshape(-1)[start : start + _TRIED]
        splits = (min(splits, key=lambda split: _trial_nbytes(part, info, split)),)
    elif is_quick and not thorough:
        splits = (min(splits, key=lambda split: _quick_nbytes(array.reshape(-1), info, split)),)
    encode = partial(assemble_raw, name, dtype, array, thorough=thorough, is_quick=is_quick, collect=collect)
    return min(map(encode, splits), key=cost)


def encode_lossless(
    name: str, dtype: str, array: npt.NDArray[Any], *, thorough: bool = False, collect: Collect = list
) -> EncodedTensor:
    """The same as quickly as can be, with all that the format has.

    Zeros are stored apart (SPEC 8.1), and bfloat16 as floating-point codes (SPEC 9.3), where a sample says that this
    takes fewer bytes. Readers of version 1.1 do not know zeros that are stored apart.
    """
    info = BY_NAME[dtype]
    dense = partial(_encode_dense, name, dtype, array, thorough=thorough, collect=collect)
    if not info.word_nbytes or not array.size:
        return dense()
    part = _spread_sample(array.reshape(-1))
    words = part.view(f"<u{info.word_nbytes}")
    if np.count_nonzero(words << 1) > (1 - _LEAST_ZEROS) * words.size:
        return dense()
    in_dense = min(_trial_nbytes(part, info, split) for split in (1, 2))
    in_sparse, split = min((sum(map(packing.trial_nbytes, raw.encode_sparse(part, info, split))), split)
                           for split in (1, 2))  # fmt: skip
    if in_sparse > in_dense * _MAY_BE_LESS:
        return dense()
    sparse = assemble_raw(name, dtype, array, split, thorough=thorough, is_quick=True, is_sparse=True, collect=collect)
    if array.size > part.size and in_sparse < in_dense / _MAY_BE_LESS:
        return sparse
    return min(sparse, dense(), key=nbytes)


def _encode_dense(
    name: str, dtype: str, array: npt.NDArray[Any], *, thorough: bool, collect: Collect
) -> EncodedTensor:  # fmt: skip
    as_bytes = partial(encode_exact, name, dtype, array, thorough=thorough, is_quick=True, collect=collect)
    if dtype != "bf16" or not float_codes.pays(array):
        return as_bytes()
    as_codes = float_codes.encode(name, array, thorough=thorough, collect=collect)
    if as_codes is None:
        return as_bytes()
    return min(as_codes, as_bytes(), key=nbytes) if thorough else as_codes


def _spread_sample(flat: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Runs of elements from all over a tensor."""
    if flat.size <= _TRIED:
        return flat
    starts = np.linspace(0, flat.size - _RUN, _TRIED // _RUN).astype(np.intp)
    sample: npt.NDArray[Any] = flat[(starts[:, None] + np.arange(_RUN)).reshape(-1)]
    return sample


def _trial_nbytes(part: npt.NDArray[Any], info: DType, split: int) -> int:
    """An estimate of the bytes that a part takes with a split."""
    return sum(map(packing.trial_nbytes, raw.encode(part, info, split)))


def _quick_nbytes(flat: npt.NDArray[Any], info: DType, split: int) -> int:
    """An estimate of the bytes that a small tensor takes with a split, entries of the table included."""
    return sum(min(len(plain), *(len(packing.compress(plain, how)) for how in packing.QUICKEST)) + TABLE_ENTRY_NBYTES
               for plain in raw.encode(flat, info, split))  # fmt: skip


def encode_raw(name: str, dtype: str, array: npt.NDArray[Any], *, collect: Collect = list) -> EncodedTensor:
    """Encode a tensor losslessly, as plain bytes without compression."""
    return assemble_raw(name, dtype, array, 0, compress=False, collect=collect)


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


def nbytes(tensor: EncodedTensor) -> int:
    """Bytes of the sections, of their entries in the table and of the record, which count where tensors are small."""
    return cost(tensor) + len(pack(tensor.record.to_metadata()))


def cost(tensor: EncodedTensor) -> int:
    """Bytes of the sections and of their entries in the table of the chunk."""
    return tensor.stored_nbytes + TABLE_ENTRY_NBYTES * len(tensor.sections)
