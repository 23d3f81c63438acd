"""The raw and the sparse raw stage: the bytes of the elements (SPEC section 8)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .. import native
from ..errors import FormatError
from ..format.bits import pack_nibbles, unpack_nibbles
from ..format.dtypes import DType
from ..native.planes import split_planes


def encode(elements: npt.NDArray[Any], dtype: DType, split: int) -> list[bytes]:
    """Encode a block into its plain sections.

    Args:
        elements: ``(n,)`` elements of ``dtype``, little-endian, contiguous.
    """
    if dtype.bits == 4:
        return [pack_nibbles(elements.view(np.uint8))]
    if not split:
        return [elements.tobytes()]
    return _planes(elements.view(f"<u{dtype.word_nbytes}"), split)


def encode_sparse(elements: npt.NDArray[Any], dtype: DType, split: int) -> list[bytes]:
    """Encode a block into the plain sections of a sparse raw stage. Arguments are those of ``encode``."""
    words: npt.NDArray[Any] = elements.view(f"<u{dtype.word_nbytes}")
    is_marked = words << 1 != 0
    bare = words[np.flatnonzero(~is_marked)]  # several times as fast as words[~is_marked]
    planes = _planes(words[np.flatnonzero(is_marked)], split)
    return [_pack_bits(is_marked), _pack_bits(bare != 0), *planes]


def n_marked(elements: npt.NDArray[Any], dtype: DType) -> int:
    """How many words of a block ``encode_sparse`` puts into the byte planes."""
    words: npt.NDArray[Any] = elements.view(f"<u{dtype.word_nbytes}")
    return int(np.count_nonzero(words << 1))


def _planes(words: npt.NDArray[Any], split: int) -> list[bytes]:
    nbytes = words.itemsize
    if native.is_used():
        return [plane.tobytes() for plane in split_planes(words, rotates=split == 2)]
    if split == 2:  # RAW-004
        sign = words >> (8 * nbytes - 1)
        words = words << 1
        words |= sign
    return [(words >> 8 * p).astype(np.uint8).tobytes() for p in range(nbytes)]


def _pack_bits(bits: npt.NDArray[np.bool_]) -> bytes:
    return np.packbits(bits, bitorder="little").tobytes()


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
    _join(payloads, split, out.view(f"<u{dtype.word_nbytes}"))


def decode_sparse(payloads: list[bytes], dtype: DType, split: int, out: npt.NDArray[Any]) -> None:
    """Fill ``out`` from the plain sections of a block of a sparse raw stage. Arguments are those of ``decode``.

    Raises:
        FormatError: Marks and count differ, or unused bits are not zero (SPA-004).
    """
    words: npt.NDArray[Any] = out.view(f"<u{dtype.word_nbytes}")
    marked = np.empty(len(payloads[2]), words.dtype)
    is_marked = _unpack_bits(payloads[0], words.size, "marks")
    places = np.flatnonzero(is_marked)
    if places.size != marked.size:
        raise FormatError(f"{places.size} marks of the block are set, not {marked.size}", clause="SPA-004")
    signs = _unpack_bits(payloads[1], words.size - marked.size, "signs")
    _join(payloads[2:], split, marked)
    words[:] = 0
    if signs.any():
        words[np.flatnonzero(~is_marked)[signs]] = 1 << (8 * dtype.word_nbytes - 1)
    words[places] = marked


def _unpack_bits(packed: bytes, n: int, what: str) -> npt.NDArray[np.bool_]:
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little").view(np.bool_)
    if bits[n:].any():
        raise FormatError(f"unused bits of the {what} are not zero", clause="SPA-004")
    return bits[:n]


def _join(payloads: list[bytes], split: int, words: npt.NDArray[Any]) -> None:
    """Fill words from their byte planes."""
    nbytes = words.itemsize
    planes = words.view(np.uint8).reshape(-1, nbytes)  # RAW-003: (n_words, bytes of a word)
    for p, payload in enumerate(payloads):
        planes[:, p] = np.frombuffer(payload, np.uint8)
    if split == 2:  # RAW-004
        lowest = words & 1
        np.right_shift(words, 1, out=words)
        np.bitwise_or(words, lowest << (8 * nbytes - 1), out=words)
