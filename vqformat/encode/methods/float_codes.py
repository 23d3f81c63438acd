"""Lossless coding of bfloat16 as floating-point codes (SPEC 9.3).

A raw stage has a plane of exponents, and one of fractions and signs, which looks like noise. But weights become rarer
towards the end of an octave. So one plane of these codes has the first bit of the fraction beside the exponent and the
sign. Huffman codes of more symbols also come closer to the entropy. Files are 0.3 to 2 % smaller.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ... import native
from ...format.chunkwriter import EncodedTensor
from ...format.stages import CodebookStage, FloatSource
from ...native.planes import split_floats
from . import huffman, packing, planes
from .assemble import Collect, assemble_elements

_FRACTION_BITS, _EXPONENT_BITS = 7, 5
_BIAS = 127 + _FRACTION_BITS  # of the exponent of a bfloat16, for its significand as an integer
_LEAST_EXPONENT, _MOST_EXPONENT = -120, 60  # CBK-009
_LARGEST_OCTAVE = (1 << _EXPONENT_BITS) - 1
# Two and four bits of the fraction are noise, which is stored as it is. What is left fits a Huffman code of 128 symbols
_PLANES = ((4, 4), (16, 2), (128, 1))
_LOW_BITS = 6
_SAMPLE = 1 << 14  # words on which both ways are compared
_RUN = 1 << 8  # of neighbours among them
_GAIN = 0.002  # least share of bytes saved: this stage is decoded in one and a half times the time of a raw one
_MORE_NBYTES = 80  # of the record, the table of sections and the Huffman code
_MATCHED = 0.03  # share that matches save of exponents, beyond which exponents are better by themselves
_PIECE = 1 << 16

Words = npt.NDArray[np.uint16]


def encode(
    name: str, array: npt.NDArray[Any], *, thorough: bool = False, collect: Collect = list
) -> EncodedTensor | None:
    """A tensor of bfloat16 with every bit kept; None if the codes do not have all of its exponents.

    Args:
        array: C-contiguous.
        thorough: See ``fine.encode_exact``.
        collect: See ``assemble.assemble``.
    """
    words = array.reshape(-1).view("<u2")
    lowest = _lowest_octave(words)
    if lowest is None:
        return None
    exponent = lowest - _BIAS
    source = FloatSource(1, _EXPONENT_BITS, _FRACTION_BITS, exponent)
    stage = CodebookStage(dim=1, entries=source.entries, source=source, planes=_PLANES)
    below = (lowest - 1) << _FRACTION_BITS
    return assemble_elements(name, "bf16", array, stage, lambda part: payload(part.view("<u2"), below),
                          thorough=thorough, collect=collect)  # fmt: skip


def pays(array: npt.NDArray[Any]) -> bool:
    """Whether a sample takes fewer bytes so than with exponents by themselves.

    Args:
        array: Of bfloat16, C-contiguous, not empty.
    """
    flat = array.reshape(-1).view("<u2")
    words = flat
    if flat.size > _SAMPLE:
        starts = np.linspace(0, flat.size - _RUN, _SAMPLE // _RUN).astype(np.intp)
        words = flat[(starts[:, None] + np.arange(_RUN)).reshape(-1)]
    counts = np.bincount(words >> (_FRACTION_BITS - 1), minlength=1 << 10)  # sign, exponent, first bit of the fraction
    of_exponents = counts.reshape(2, 256, 2).sum(axis=(0, 2))
    before = _n_bits(of_exponents) + words.size * (_FRACTION_BITS + 1)
    saved = before - _n_bits(counts) - words.size * _LOW_BITS
    if saved < _GAIN * before or saved * flat.size < 8 * _MORE_NBYTES * words.size:
        return False
    part = flat[planes.trial_part(flat.size, flat.size)]
    exponents = (part >> _FRACTION_BITS).astype(np.uint8).tobytes()
    literals, matches = (len(packing.compress(exponents, how)) for how in packing.QUICKEST)
    return matches > (1 - _MATCHED) * literals


def _n_bits(counts: npt.NDArray[np.intp]) -> int:
    """Bits of Huffman codes."""
    used = counts[counts > 0].astype(np.uint32)
    if used.size < 2 or used.size > 256:
        return int(counts.sum()) * 16
    padded = np.zeros(256, np.uint32)
    padded[: used.size] = used
    return int((huffman.code_lengths(padded).astype(np.int64) * padded).sum())


def _lowest_octave(words: Words) -> int | None:
    """The exponent of a bfloat16 that becomes 1; None if no such codes have all values."""
    largest, smallest = 0, 1 << 15
    for start in range(0, words.size, _PIECE):
        magnitudes = words[start : start + _PIECE] & np.uint16(0x7FFF)
        largest = max(largest, int(magnitudes.max()))
        smallest = min(smallest, int((magnitudes - np.uint16(1)).min()) + 1)  # of those that are not 0
    highest = largest >> _FRACTION_BITS
    lowest = max(_LEAST_EXPONENT + _BIAS, highest - _LARGEST_OCTAVE + 1)
    if highest == 255 or smallest >> _FRACTION_BITS < lowest or lowest - _BIAS > _MOST_EXPONENT:
        return None
    return lowest


def payload(words: Words, below: int) -> list[bytes]:
    """The planes of the codes of a block (SPEC 10).

    Args:
        words: ``(n,)``, each 0 or a code but for its sign.
        below: What is taken from the magnitude of a word to give its code; that of 0 is 0.
    """
    if native.is_used():
        return split_floats(words, below)
    n = words.size
    codes = np.zeros(-(-n // 4) * 4, "<u2")
    np.bitwise_and(words, np.uint16(0x7FFF), out=codes[:n])
    np.maximum(codes, np.uint16(below), out=codes)
    codes -= np.uint16(below)
    codes[:n] |= (words & np.uint16(0x8000)) >> np.uint16(15 - _FRACTION_BITS - _EXPONENT_BITS)
    fours, pairs = codes.view("<u8"), codes.view("<u4")
    lowest = (fours & np.uint64(3) | fours >> np.uint64(14) & np.uint64(12) | fours >> np.uint64(28) & np.uint64(48)
              | fours >> np.uint64(42) & np.uint64(192))  # fmt: skip
    middle = pairs >> np.uint32(2) & np.uint32(15) | pairs >> np.uint32(14) & np.uint32(240)
    return [lowest.astype(np.uint8).tobytes(), middle[: -(-n // 2)].astype(np.uint8).tobytes(),
            (codes[:n] >> np.uint16(_LOW_BITS)).astype(np.uint8).tobytes()]  # fmt: skip
