"""The raw stage: the bytes of the elements (SPEC section 8)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import FormatError
from ..format.bits import pack_nibbles, unpack_nibbles
from ..format.dtypes import DType


def encode(elements: npt.NDArray[Any], dtype: DType, split: int) -> list[bytes]:
    """Encode a block into its plain sections.

    Args:
        elements: ``(n,)`` elements of ``dtype``, little-endian, contiguous.
    """
    if dtype.bits == 4:
        return [pack_nibbles(elements.view(np.uint8))]
    if not split:
        return [elements.tobytes()]
    words: npt.NDArray[Any] = elements.view(f"<u{dtype.word_nbytes}")
    if split == 2:  # RAW-004
        sign = words >> (8 * dtype.word_nbytes - 1)
        words = words << 1
        words |= sign
    return [(words >> 8 * p).astype(np.uint8).tobytes() for p in range(dtype.word_nbytes)]


def decode(payloads: list[bytes], dtype: DType, split: int, out: npt.NDArray[Any]) -> None:
    """Fill ``out``, ``(n,)`` elements of ``dtype``, contiguous, from the plain sections of a block.

    Raises:
        FormatError: A bool is neither 0 nor 1 (DTY-001), or unused bits are not zero (RAW-002).
    """
    if dtype.bits == 4:
        nibbles: npt.NDArray[Any] = unpack_nibbles(np.frombuffer(payloads[0], np.uint8), out.size)
        if dtype.name == "i4":  # ml_dtypes extends the sign into the upper half of the byte
            nibbles = (nibbles ^ 8) - np.uint8(8)
        out.view(np.uint8)[:] = nibbles
        return
    if not split:
        raw = np.frombuffer(payloads[0], np.uint8)
        if dtype.name == "bool" and raw.size and raw.max() > 1:
            at = int(np.argmax(raw > 1))
            raise FormatError(f"element {at} of the block is the bool {raw[at]}, neither 0 nor 1", clause="DTY-001")
        out.view(np.uint8)[:] = raw
        return
    words: npt.NDArray[Any] = out.view(f"<u{dtype.word_nbytes}")
    planes = words.view(np.uint8).reshape(-1, dtype.word_nbytes)  # RAW-003: (n_words, bytes of a word)
    for p, payload in enumerate(payloads):
        planes[:, p] = np.frombuffer(payload, np.uint8)
    if split == 2:  # RAW-004
        lowest = words & 1
        np.right_shift(words, 1, out=words)
        np.bitwise_or(words, lowest << (8 * dtype.word_nbytes - 1), out=words)
