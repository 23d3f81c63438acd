"""The kernels for byte planes, as Python calls them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import _address, _kernels


def split_planes(words: npt.NDArray[Any], *, rotates: bool) -> npt.NDArray[np.uint8]:
    """Split words into byte planes (SPEC RAW-003, RAW-004); ``decode.raw`` has the twin.

    Args:
        words: ``(n,)`` of uint16, uint32 or uint64, contiguous, little-endian.
        rotates: Whether each word is rotated left by one bit before.

    Returns:
        ``(bytes of a word, n)``, the lowest byte first.
    """
    assert _kernels is not None and words.dtype.kind == "u" and words.dtype.itemsize in (2, 4, 8)
    planes = np.empty((words.itemsize, words.size), np.uint8)
    _kernels.planes_split(_address(words), words.size, words.itemsize, rotates, _address(planes))
    return planes


def count_bytes(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """How often each of the 256 values occurs among fewer than 2^32 bytes; ``np.bincount`` is the twin."""
    assert _kernels is not None and data.dtype == np.uint8
    counts = np.empty(256, np.uint32)
    _kernels.planes_count(_address(data), data.size, _address(counts))
    return counts


def huffman_stream(
    symbols: npt.NDArray[np.uint8], codes: npt.NDArray[np.uint32], lengths: npt.NDArray[np.uint32], n_bits: int
) -> bytes:
    """The Huffman stream of some bytes (RFC 8878, 4.2.2); ``encode.methods.huffman`` has the twin.

    Args:
        codes, lengths: ``(256,)``, for each value; lengths are at most 11.
        n_bits: The bits that all codes take together.
    """
    assert _kernels is not None and symbols.dtype == np.uint8 and lengths.max() <= 11
    stream = np.empty(n_bits // 8 + 9, np.uint8)
    packed = codes << 8 | lengths
    nbytes = _kernels.planes_huffman(_address(symbols), symbols.size, _address(packed), _address(stream))
    return stream[:nbytes].tobytes()
