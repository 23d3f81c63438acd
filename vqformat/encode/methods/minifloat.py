"""Short tensors (biases, norms, statistics) as floating-point or fixed-point numbers of few bits (SPEC 9.3).

These tensors are small, but networks are sensitive to them. Values that all have one sign are usually factors or
divisors, and each needs the same relative precision (variances span orders of magnitude). Values of both signs are
usually added to something, and one step is right for all.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ...decode.codebook import floats
from ...decode.tables import Floats
from ...format.chunkwriter import EncodedTensor
from ...format.dtypes import BY_NAME
from ...format.layout import Layout
from ...format.sections import TABLE_ENTRY_NBYTES
from ...format.stages import CodebookStage, FloatSource
from . import fine
from .assemble import QuantizedStage, assemble
from .layout import reals

FINE_BITS = 8  # fraction bits without a budget: the relative error is at most 1/512
_FRACTION_BITS = range(3, 11)
_EXPONENT_BITS = 5
_EXPONENTS = range(-120, 61)
_COARSEST = 0.35  # largest step of a fixed-point grid, relative to the root mean square
_LONGEST = 1 << 20  # elements of a tensor that is coded this way


def encode_minifloat(
    name: str, dtype: str, array: npt.NDArray[Any], step: float | None = None
) -> tuple[EncodedTensor, npt.NDArray[Any]]:
    """Encode a short tensor as floating-point or fixed-point numbers, or by ``encode_fine`` if that takes fewer bytes.

    Args:
        array: Of an arithmetic dtype, finite.
        step: The step that is precise enough, relative to the root mean square; None for ``FINE_BITS``.

    Returns:
        The encoded tensor, and the rounded array.
    """
    best, rounded = fine.encode_fine(name, dtype, array)
    source = None if BY_NAME[dtype].is_complex or not array.size else _source(reals(array), dtype, step)
    if source is None:
        return best, rounded
    values = reals(array)
    codes = _codes(values.reshape(-1), source)
    stage = CodebookStage(dim=1, entries=source.entries, source=source)
    shorter = assemble(name, dtype, array.shape, Layout(), [QuantizedStage(stage, [], codes.reshape(1, -1))])
    if _cost(shorter) >= _cost(best):
        return best, rounded
    return shorter, floats(source)[codes].reshape(array.shape).astype(array.dtype)


def _cost(tensor: EncodedTensor) -> int:
    return tensor.stored_nbytes + TABLE_ENTRY_NBYTES * len(tensor.sections)


def _source(values: Floats, dtype: str, step: float | None) -> FloatSource | None:
    """The format with the fewest bits that is precise enough; None if there is none."""
    magnitudes = np.abs(values[values != 0])
    if not magnitudes.size or values.size > _LONGEST:
        return None
    signed = int(bool((values < 0).any()))
    has_one_sign = bool((values > 0).all())
    largest, smallest = float(magnitudes.max()), float(magnitudes.min())
    if step is not None and not has_one_sign:
        found = _fixed(values, signed, largest, step)
        if found is not None:
            return found
    fraction_bits = FINE_BITS
    if step is not None:
        fraction_bits = min(max(math.ceil(-math.log2(step) - 0.5), _FRACTION_BITS[0]), _FRACTION_BITS[-1])
    low, high = math.frexp(smallest)[1] - 1, math.frexp(largest * (1 + 2.0 ** -(fraction_bits + 1)))[1] - 1
    exponent_bits = (high - low + 1).bit_length()  # one exponent is reserved for 0
    exponent = low - fraction_bits
    if exponent_bits > _EXPONENT_BITS or exponent not in _EXPONENTS:
        return None
    source = FloatSource(signed, exponent_bits, fraction_bits, exponent)
    return None if float(floats(source).max()) > BY_NAME[dtype].largest else source


def _fixed(values: Floats, signed: int, largest: float, step: float) -> FloatSource | None:
    """A fixed-point grid that is precise enough; None if there is none."""
    deviation = math.sqrt(float(np.mean(np.square(values, dtype=np.float64))))
    exponent = math.floor(math.log2(min(step, _COARSEST) * deviation))
    fraction_bits = (round(largest / 2.0**exponent)).bit_length()
    if fraction_bits > _FRACTION_BITS[-1] or exponent not in _EXPONENTS:
        return None
    return FloatSource(signed, 0, fraction_bits, exponent)


def _codes(values: Floats, source: FloatSource) -> npt.NDArray[np.intp]:
    """The nearest code of each value."""
    n_magnitudes = source.entries >> source.signed
    magnitudes = floats(source)[:n_magnitudes].astype(np.float64)  # they ascend with the code
    found = np.searchsorted((magnitudes[1:] + magnitudes[:-1]) / 2, np.abs(values).astype(np.float64), side="left")
    return found + n_magnitudes * (values < 0)
